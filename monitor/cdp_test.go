//go:build browser && unix

package monitor_test

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long is waited for what has to come.
const patience = 2 * time.Minute

// browser is a headless Chromium with one tab. It is spoken to in the protocol of its
// developer tools through two pipes: JSON, with a zero byte behind each message.
type browser struct {
	t       testing.TB
	to      *os.File
	session string

	mu      sync.Mutex
	sent    int
	answers map[int]chan answer
	asked   []string // URLs
	wrong   []string // what the console said, exceptions, what was refused
}

type answer struct {
	Result json.RawMessage
	Error  *struct{ Message string }
}

// startBrowser starts chromium, until the test ends.
func startBrowser(t testing.TB) *browser {
	t.Helper()
	theirIn, ourOut, err := os.Pipe()
	must(t, err)
	ourIn, theirOut, err := os.Pipe()
	must(t, err)
	b := &browser{t: t, to: ourOut, answers: map[int]chan answer{}}
	cmd := exec.Command("chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe",
		"--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync",
		"--hide-scrollbars", "--force-color-profile=srgb", "--disable-dev-shm-usage", "--user-data-dir="+t.TempDir())
	cmd.ExtraFiles = []*os.File{theirIn, theirOut} // 3 and 4 there
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	must(t, errors.Join(theirIn.Close(), theirOut.Close()))
	var read sync.WaitGroup
	read.Go(func() { b.read(bufio.NewReader(ourIn)) })
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
		_ = ourOut.Close()
		read.Wait()
		_ = ourIn.Close()
	})
	var target struct{ TargetID string }
	b.ask("Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var session struct{ SessionID string }
	b.ask("Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &session)
	b.session = session.SessionID
	for _, domain := range []string{"Page", "Runtime", "Network", "Log"} {
		b.ask(domain+".enable", nil, nil)
	}
	b.ask("Emulation.setTimezoneOverride", map[string]any{"timezoneId": "UTC"}, nil)
	return b
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// read takes answers to whom they are for, and notes of the events what tests look at.
func (b *browser) read(from *bufio.Reader) {
	for {
		text, err := from.ReadBytes(0)
		if err != nil {
			return
		}
		var m struct {
			answer
			ID     int
			Method string
			Params struct {
				Request struct{ URL string }
				Type    string
				Args    []struct{ Value any }
				Entry   struct{ Level, Text, URL string }
				Details json.RawMessage `json:"exceptionDetails"`
			}
		}
		if json.Unmarshal(text[:len(text)-1], &m) != nil {
			continue // an event of another shape
		}
		b.mu.Lock()
		switch m.Method {
		case "":
			if to := b.answers[m.ID]; to != nil {
				to <- m.answer
				delete(b.answers, m.ID)
			}
		case "Network.requestWillBeSent":
			b.asked = append(b.asked, m.Params.Request.URL)
		case "Runtime.consoleAPICalled":
			b.wrong = append(b.wrong, fmt.Sprint("console: ", m.Params.Type, m.Params.Args))
		case "Runtime.exceptionThrown":
			b.wrong = append(b.wrong, "exception: "+string(m.Params.Details))
		case "Log.entryAdded":
			b.wrong = append(b.wrong, fmt.Sprint("log: ", m.Params.Entry))
		}
		b.mu.Unlock()
	}
}

// ask calls a method and puts its result into result, if that is not nil.
func (b *browser) ask(method string, params, result any) {
	b.t.Helper()
	to := make(chan answer, 1)
	b.mu.Lock()
	b.sent++
	id := b.sent
	b.answers[id] = to
	b.mu.Unlock()
	if params == nil {
		params = struct{}{}
	}
	m := map[string]any{"id": id, "method": method, "params": params}
	if b.session != "" {
		m["sessionId"] = b.session
	}
	text, err := json.Marshal(m)
	must(b.t, err)
	_, err = b.to.Write(append(text, 0))
	must(b.t, err)
	select {
	case a := <-to:
		if a.Error != nil {
			b.t.Fatalf("%s: %s", method, a.Error.Message)
		}
		if result != nil {
			must(b.t, json.Unmarshal(a.Result, result))
		}
	case <-time.After(patience):
		b.t.Fatalf("chromium does not answer %s", method)
	}
}

// open opens a page, and waits until its first answer is shown.
func (b *browser) open(url string) {
	b.t.Helper()
	b.ask("Page.navigate", map[string]any{"url": url}, nil)
	b.waits("document.readyState === 'complete' && document.querySelector('#asof').textContent !== ''")
}

// eval is the value of an expression, which may be a promise, as text.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var r struct {
		Result  struct{ Value any }
		Details *struct{ Text string } `json:"exceptionDetails"`
	}
	b.ask("Runtime.evaluate", map[string]any{"expression": expression, "awaitPromise": true, "returnByValue": true}, &r)
	if r.Details != nil {
		b.t.Fatalf("%s: %s", expression, r.Details.Text)
	}
	if text, is := r.Result.Value.(string); is {
		return text
	}
	text, err := json.Marshal(r.Result.Value)
	must(b.t, err)
	return string(text)
}

// waits waits until an expression is true.
func (b *browser) waits(expression string) {
	b.t.Helper()
	for began := time.Now(); b.eval("Boolean("+expression+")") != "true"; time.Sleep(50 * time.Millisecond) {
		if time.Since(began) > patience {
			b.t.Fatalf("it does not come that %s; the page says\n%s", expression, b.eval("document.body.innerText"))
		}
	}
}

// texts are the texts of all elements that a selector finds.
func (b *browser) texts(selector string) []string {
	b.t.Helper()
	var all []string
	text := b.eval(fmt.Sprintf("JSON.stringify([...document.querySelectorAll(%q)].map((e) => e.textContent))", selector))
	must(b.t, json.Unmarshal([]byte(text), &all))
	return all
}

// press presses a key and lets it go.
func (b *browser) press(key string, code int) {
	b.t.Helper()
	text := ""
	if key == "Enter" {
		text = "\r"
	}
	for _, kind := range []string{"keyDown", "keyUp"} {
		b.ask("Input.dispatchKeyEvent", map[string]any{"type": kind, "key": key, "code": key, "text": text,
			"windowsVirtualKeyCode": code}, nil)
	}
}

// looks sets the width of the tab, in pixels, and what the system says that its user
// likes: light or dark, and whether things may move.
func (b *browser) looks(width int, scheme, motion string) {
	b.t.Helper()
	b.ask("Emulation.setDeviceMetricsOverride", map[string]any{"width": width, "height": 900, "deviceScaleFactor": 1,
		"mobile": false}, nil)
	b.ask("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{
		{"name": "prefers-color-scheme", "value": scheme}, {"name": "prefers-reduced-motion", "value": motion}}}, nil)
}

// picture is the whole page as PNG.
func (b *browser) picture() []byte {
	b.t.Helper()
	var r struct{ Data string }
	b.ask("Page.captureScreenshot", map[string]any{"captureBeyondViewport": true}, &r)
	png, err := base64.StdEncoding.DecodeString(r.Data)
	must(b.t, err)
	return png
}

// complaints are what came since the last call: everything that the console said, and all
// requests to elsewhere than origin.
func (b *browser) complaints(origin string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	all := slices.Clone(b.wrong)
	for _, url := range b.asked {
		if !strings.HasPrefix(url, origin+"/") {
			all = append(all, "asked: "+url)
		}
	}
	b.wrong, b.asked = nil, nil
	return all
}
