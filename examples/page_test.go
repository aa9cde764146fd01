//go:build examples && unix

package examples

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// TestPage is the page in a real browser: it shows what comes, and says what it does not
// see.
func TestPage(t *testing.T) { layouts(t, testPage) }

func testPage(t *testing.T, options ...string) {
	w := newWorld(t, "README.md")
	w.options = options
	w.start()
	files := http.NewServeMux()
	files.HandleFunc("/", func(out http.ResponseWriter, r *http.Request) { http.ServeFile(out, r, "browser/index.html") })
	files.HandleFunc("/nats.js", func(out http.ResponseWriter, r *http.Request) {
		http.ServeFile(out, r, filepath.Join(*browser, "nats.js"))
	})
	server := httptest.NewServer(files)
	t.Cleanup(server.Close)
	b := startBrowser(t)
	b.ask("Page.navigate", map[string]any{"url": server.URL}, nil)
	b.waits(`document.readyState === "complete" && typeof nats === "object"`)

	look := func(password string) {
		b.eval(fmt.Sprintf(`{ const f = document.querySelector("form"); f.server.value = "ws://%s"; f.user.value = "page";
			f.pass.value = %q; f.requestSubmit(); }`, w.webSocket, password))
	}
	look("wrong")
	b.waits(`document.querySelector("#state").textContent.startsWith("It does not connect: ")`)
	look(password("page"))
	b.waits(`document.querySelector("#state").textContent === "Connected."`)
	newest := func(selector, text string) {
		t.Helper()
		b.waits(fmt.Sprintf(`[...document.querySelectorAll("#list > :is(%s)")].some((e) => e.textContent.includes(%q))`,
			selector, text))
	}

	// What people write is text, whatever it looks like.
	w.say("ops", "ada@example.com", "<b id=evil>moin</b><script>document.title = 'evil'</script>")
	newest(".message", "<b id=evil>moin</b><script>")
	if got := b.eval(`document.title + document.querySelectorAll("#evil").length`); got != "Zulip, as it happens0" {
		t.Errorf("a message got into the page: %s", got)
	}
	w.say("ops", "ada@example.com", strings.Repeat("large ", 200_000))
	newest(".note", "A large message, 1200")
	w.zulip.SendMessage(zulipsim.Message{To: []string{"bridge-bot@example.com"}, Content: "between us"})
	newest(".message", "direct")

	// NATS goes away, and comes back. What is written meanwhile comes when the bridge has
	// stored it, before or after the page is there again; what is written then comes.
	w.nats.Stop()
	newest(".note", "Not connected since ")
	w.nats.Start()
	newest(".note", "Connected again.")
	w.say("ops", "ada@example.com", "there again")
	newest(".message", "there again")

	// The queue is lost.
	w.settle()
	w.bridge.Kill()
	w.say("ops", "ada@example.com", "meanwhile")
	w.zulip.ExpireAll()
	w.start()
	newest(".note", "A gap: Zulip has dropped the queue.")
	newest(".message", "heard of later\nword") // and its text
	newest(".note", "The gap is over. Messages read back: 1.")
	if wrong := b.eval("wrong.join('\\n')"); wrong != "" {
		t.Errorf("the page has errors:\n%s", wrong)
	}
}

// TestRights: none of the users of README.md can write where the bridge writes, or take
// something away, and the page hears of messages and gaps only.
func TestRights(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "README.md")
	w.start()
	for _, user := range []string{"search", "greeter", "statistics", "page"} {
		refused := make(chan error, 100)
		nc, err := nats.Connect(w.as(user), nats.CustomInboxPrefix("_INBOX_"+user),
			nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { refused <- err }))
		harness.Must(t, err)
		t.Cleanup(nc.Close)
		none := func(what string, try func() error) {
			t.Helper()
			harness.Must(t, try())
			select {
			case err := <-refused:
				if !errors.Is(err, nats.ErrPermissionViolation) {
					t.Error(err)
				}
			case <-time.After(harness.Patience):
				t.Errorf("%s may %s", user, what)
			}
		}
		for _, subject := range []string{"zulip.acme.message", "zulip.acme.bridge.queue", "$O.zulip_acme.C.x",
			"$KV.zulip_bridge.realm.acme.claim", "$JS.API.STREAM.PURGE.ZULIP_acme", "$JS.API.STREAM.DELETE.ZULIP_acme",
			"$JS.API.STREAM.UPDATE.ZULIP_acme", "$JS.API.STREAM.MSG.DELETE.ZULIP_acme"} {
			none("publish on "+subject, func() error { return nc.Publish(subject, []byte("{}")) })
		}
		subjects := []string{">", "_INBOX.>", "zulip.>", "zulip.acme.reaction", "zulip.acme.*"}
		if user != "page" {
			subjects = append(subjects, "zulip.acme.message")
		}
		for _, subject := range subjects {
			none("listen on "+subject, func() error { _, err := nc.SubscribeSync(subject); return err })
		}
	}
	w.violations = true // these were meant
}

// tab is a headless Chromium with one tab, which is spoken to in the protocol of its
// developer tools through two pipes: JSON, with a zero byte behind each message.
type tab struct {
	t       testing.TB
	to      *os.File
	from    *bufio.Reader
	session string
	sent    int
}

// startBrowser starts chromium, until the test ends. The page's errors are in `wrong`.
func startBrowser(t testing.TB) *tab {
	t.Helper()
	theirIn, ourOut, err := os.Pipe()
	harness.Must(t, err)
	ourIn, theirOut, err := os.Pipe()
	harness.Must(t, err)
	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--disable-dev-shm-usage", "--user-data-dir="+t.TempDir())
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4 there
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	harness.Must(t, cmd.Start())
	harness.Must(t, errors.Join(theirIn.Close(), theirOut.Close()))
	b := &tab{t: t, to: ourOut, from: bufio.NewReader(ourIn)}
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_, _ = ourOut.Close(), ourIn.Close()
	})
	var target struct{ TargetID string }
	b.ask("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var session struct{ SessionID string }
	b.ask("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session)
	b.session = session.SessionID
	b.ask("Page.enable", nil, nil)
	b.ask("Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": `var wrong = [];
		addEventListener("error", (e) => wrong.push(e.message));
		addEventListener("unhandledrejection", (e) => wrong.push(String(e.reason)));`}, nil)
	return b
}

// ask calls a method and puts its result into result, if that is not nil. What comes in
// between are events, which nobody looks at.
func (b *tab) ask(method string, params, result any) {
	b.t.Helper()
	b.sent++
	m := map[string]any{"id": b.sent, "method": method}
	if params != nil {
		m["params"] = params
	}
	if b.session != "" {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	harness.Must(b.t, err)
	_, err = b.to.Write(append(text, 0))
	harness.Must(b.t, err)
	for {
		text, err := b.from.ReadBytes(0)
		harness.Must(b.t, err)
		var a struct {
			ID     int
			Result json.RawMessage
			Error  *struct{ Message string }
		}
		harness.Must(b.t, json.Unmarshal(text[:len(text)-1], &a))
		switch {
		case a.ID != b.sent:
			continue
		case a.Error != nil:
			b.t.Fatalf("%s: %s", method, a.Error.Message)
		case result != nil:
			harness.Must(b.t, json.Unmarshal(a.Result, result))
		}
		return
	}
}

// eval is the value of an expression as text.
func (b *tab) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result  struct{ Value any }
		Details *struct{ Text string } `json:"exceptionDetails"`
	}
	b.ask("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true}, &r)
	if r.Details != nil {
		b.t.Fatalf("%s: %s", expression, r.Details.Text)
	}
	return fmt.Sprint(r.Result.Value)
}

// waits waits until an expression is true.
func (b *tab) waits(expression string) {
	b.t.Helper()
	if !harness.Within(harness.Patience, func() bool { return b.eval("Boolean("+expression+")") == "true" }) {
		b.t.Fatalf("it does not come that %s; the page says\n%s", expression, b.eval("document.body.innerText"))
	}
}
