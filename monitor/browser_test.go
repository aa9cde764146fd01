//go:build browser && unix

// The page in a real browser: go test -tags browser ./monitor, where there is chromium.
package monitor_test

import (
	"bytes"
	"cmp"
	"context"
	"flag"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/fleet"
	"zulip-nats/monitor"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

var (
	pictures = flag.String("pictures", "", "the folder into which TestPageStates puts pictures of the page")
	length   = flag.Duration("for", 10*time.Second, "for how long people talk before TestPageStates looks at the page")
	axe      = flag.String("axe", "", "the file axe.min.js of axe-core, to look over the page with it")
)

// place is where some realms are bridged into one NATS server, and watched.
type place struct {
	t      testing.TB
	conn   *stream.Conn
	work   sync.WaitGroup
	shares []*fleet.Instance
	ctx    context.Context
	end    func()

	mu      sync.Mutex
	bridges []*bridge.Bridge // those that are watched
}

func newPlace(t testing.TB) *place {
	t.Helper()
	p := &place{t: t}
	p.ctx, p.end = context.WithCancel(context.Background())
	conn, err := stream.Connect(p.ctx, stream.ConnectConfig{URL: natstest.Start(t).URL})
	must(t, err)
	t.Cleanup(func() {
		p.end()
		p.work.Wait()
		for _, shared := range p.shares {
			_ = shared.Close(context.Background()) // its key may be gone
		}
		conn.Close()
	})
	p.conn = conn
	return p
}

// serve serves what the page needs; stop may be called again.
func (p *place) serve() (url string, stop func()) {
	p.t.Helper()
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(p.t))
	stop, err := monitor.Serve(address, monitor.New("1.2.3", func() (all []bridge.Status) {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, b := range p.bridges {
			all = append(all, b.Status())
		}
		return all
	}), false, zerolog.Nop())
	must(p.t, err)
	p.t.Cleanup(stop)
	return "http://" + address, stop
}

// realm is an organization with a bridge that is watched.
func (p *place) realm(name string, watched bool, zulip *zulipsim.Server) *bridge.Bridge {
	p.t.Helper()
	realm, err := subjects.ParseRealm(name)
	must(p.t, err)
	bot := zulip.Account("bridge-bot@example.com")
	site := zulip.Start(p.t)
	account := poller.Account{Email: bot.Email, Key: bot.Key, Site: site, Insecure: true}
	writer := "host-1"
	if !watched {
		writer = "host-2"
	}
	shared, err := fleet.NewInstance(fleet.Config{Conn: p.conn, Writer: writer, TTL: time.Minute})
	must(p.t, err)
	p.shares = append(p.shares, shared)
	b := bridge.New(bridge.Config{
		Realm: realm, Site: account.Site, Account: account.Email, Writer: writer, Log: zerolog.Nop(),
		Poller: &poller.Poller{
			Client:  &poller.Client{Account: func() (poller.Account, error) { return account, nil }},
			Options: poller.DefaultOptions(), Log: zerolog.Nop(),
		},
		Open: func(ctx context.Context) (bridge.Stream, error) {
			// A busy machine, with browsers on it, is not to look like trouble with NATS.
			s, err := stream.Open(ctx, p.conn, stream.Config{Realm: realm.String(), Filter: realm.All(),
				AckTimeout: 30 * time.Second})
			if err != nil {
				return nil, err
			}
			return s, nil
		},
		Acquire: func(ctx context.Context, standby func(string)) (bridge.Lease, error) {
			l, err := shared.Acquire(ctx, name, 1, func(h fleet.Holder) { standby(h.Writer) })
			if err != nil {
				return nil, err
			}
			return l, nil
		},
	})
	p.work.Go(func() {
		if err := b.Run(p.ctx); err != nil {
			p.t.Error(name, err)
		}
	})
	if watched {
		p.mu.Lock()
		p.bridges = append(p.bridges, b)
		p.mu.Unlock()
	}
	p.waits(name+" leads or stands by", func() bool {
		s := b.Status().State
		return s == bridge.Following || s == bridge.Standby
	})
	return b
}

func (p *place) waits(what string, ready func() bool) {
	p.t.Helper()
	for began := time.Now(); !ready(); time.Sleep(20 * time.Millisecond) {
		if time.Since(began) > patience {
			p.t.Fatalf("it does not come: %s", what)
		}
	}
}

// TestPage is a person's afternoon with the page: what it shows, that it moves without
// being loaded again, and that it says so when nobody answers it any more.
func TestPage(t *testing.T) {
	t.Parallel()
	p, zulip := newPlace(t), &zulipsim.Server{}
	zulip.Channel("ops")
	p.realm("acme", true, zulip)
	p.realm("quiet", true, &zulipsim.Server{})
	url, stop := p.serve()
	b := startBrowser(t)
	b.looks(1280, "light", "no-preference")
	b.open(url + "/")
	b.eval("window.stays = 'it was not loaded again'")

	if got := b.texts("h1, h2"); !slices.Equal(got, []string{"zulip-nats", "acme", "quiet"}) {
		t.Errorf("headings %q", got)
	}
	if got := b.texts(".badge"); !slices.Equal(got, []string{"Following", "Following"}) {
		t.Errorf("states %q", got)
	}
	if got := b.texts("title, #verdict"); strings.Join(got, ": ") != "All well – zulip-nats: All 2 realms do their job." {
		t.Errorf("it says %q", got)
	}

	// What comes is counted, drawn, and named without its content.
	const secret = "the xyzzy plan"
	for range 3 {
		zulip.SendMessage(zulipsim.Message{Channel: "ops", Topic: secret, Content: secret})
	}
	// Heartbeats count too, where it took a minute to come so far.
	b.waits(`/Last minute[345] events, /.test(document.querySelector("#realm-1 [data-is=stored]").textContent)`)
	b.waits(`document.querySelector("#realm-1 [data-is=events]").textContent.startsWith("message3")`)
	b.waits(`document.querySelector("#realm-1 [data-is=plot-stored] .open").getAttribute("d").length > 0`)
	label := b.eval(`document.querySelector("#realm-1 [data-is=plot-stored]").getAttribute("aria-label")`)
	if !regexp.MustCompile("^Events stored a minute in the .*[3-9] in all").MatchString(label) {
		t.Errorf("the plot is told as %q", label)
	}
	if got := b.texts("#realm-1 [data-is=waiting]"); !strings.HasPrefix(got[0], "Zulip keeps the queue23 h 5") {
		t.Errorf("what is waiting is told as %q", got)
	}
	if text := b.eval("document.documentElement.outerHTML"); strings.Contains(text, secret) {
		t.Error("the page shows the content of a message")
	}

	// Zulip goes away, and comes back. Each is said once to who hears the page.
	b.eval(`window.said = []; new MutationObserver(() => said.push(document.querySelector("#news").textContent)).observe(
		document.querySelector("#news"), {childList: true, characterData: true, subtree: true})`)
	zulip.Down()
	b.waits(`document.querySelector("#realm-1 .badge").textContent === "Waiting for Zulip"`)
	b.waits(`document.querySelector("#realm-1 .reasons").textContent.startsWith("Zulip:")`)
	b.waits(`document.querySelector("#realm-1 [data-is=plot-state] .bad").getAttribute("d").length > 0`)
	if got := b.texts("#verdict"); got[0] != "1 of 2 realms does not do the job: acme." {
		t.Errorf("it says %q", got)
	}
	ticks(b, 2)
	zulip.Up()
	b.waits(`document.querySelector("#realm-1 .badge").textContent === "Following"`)
	ticks(b, 2)
	if said := b.eval("said.join('|')"); strings.Count(said, "acme: ") != 2 || strings.Count(said, "|") != 1 ||
		!strings.HasPrefix(said, "acme: Waiting for Zulip, Zulip does not serve what is needed.") {
		t.Errorf("it was said: %q", said)
	}
	if got := b.eval("window.stays"); got != "it was not loaded again" {
		t.Error("it was loaded again")
	}

	// Who pauses it, or does not look at it, is not asked for; then it is. All of it is one
	// expression, or the page's own timer may come in between.
	asks := func() string {
		b.t.Helper()
		return b.eval(`(async () => {
			while (asking) await new Promise((done) => setTimeout(done, 10));
			const fetches = window.fetch;
			let n = 0;
			window.fetch = (...what) => { n++; return fetches(...what); };
			await ask(); // as its timer does
			window.fetch = fetches;
			return String(n);
		})()`)
	}
	const pause = `document.querySelector("#pause").click()`
	const hide = `Object.defineProperty(document, "hidden", {value: %s, configurable: true});
		document.dispatchEvent(new Event("visibilitychange"))`
	if n := asks(); n != "1" {
		t.Errorf("it asks %s times at once", n)
	}
	b.eval(pause)
	if n := asks(); n != "0" {
		t.Errorf("it asks while it is paused")
	}
	b.eval(pause)
	ticks(b, 1)
	b.eval(fmt.Sprintf(hide, "true"))
	if n, title := asks(), b.eval("document.title"); n != "0" || title != "zulip-nats" {
		t.Errorf("it asks %s times while it is hidden, with the title %s", n, title)
	}
	b.eval(fmt.Sprintf(hide, "false"))
	ticks(b, 1)

	if wrong := b.complaints(url); len(wrong) > 0 {
		t.Errorf("it complained, or asked elsewhere:\n%s", strings.Join(wrong, "\n"))
	}

	// The program ends.
	stop()
	b.waits(`!document.querySelector("#lost").hidden`)
	b.waits(`document.querySelector("#lost").textContent.startsWith("The bridge does not answer since ")`)
	if got := b.eval("said.at(-1) + document.title"); got != "The bridge does not answer.No answer – zulip-nats" {
		t.Errorf("it says %q", got)
	}
}

// ticks waits until the page has asked so many times more and shown the answer.
func ticks(b *browser, n int) {
	b.t.Helper()
	b.eval(`window.shown = 0; window.watch = window.watch || new MutationObserver(() => shown++);
		watch.observe(document.querySelector("#asof"), {childList: true, characterData: true, subtree: true})`)
	b.waits(fmt.Sprintf("shown >= %d", n))
}

// TestPageStates is the page with realms in many states, in light and dark, wide and
// narrow, by keyboard, and looked over by axe.
func TestPageStates(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	acme, school, club, lab := &zulipsim.Server{}, &zulipsim.Server{}, &zulipsim.Server{}, &zulipsim.Server{}
	url, _ := p.serve()
	first := p.realm("acme", true, acme)
	third := p.realm("lab", true, lab)
	second := p.realm("school", true, school)
	p.realm("club", false, club)
	p.realm("club", true, club)
	talk, silence := context.WithCancel(p.ctx)
	defer silence()
	talks := func(zulip *zulipsim.Server, seed uint64, every time.Duration) {
		zulip.Channel("ops")
		p.work.Go(func() { zulip.Chatter(talk, seed, every) })
	}
	began := time.Now()
	at := func(part float64) { time.Sleep(time.Until(began.Add(time.Duration(part * float64(*length))))) }
	talks(acme, 1, *length/1500)
	talks(school, 2, *length/400)
	for range 3 { // to be read back
		lab.SendMessage(zulipsim.Message{Channel: "ops", Content: "moin"})
	}
	at(0.35)
	acme.Fault(zulipsim.Fault{Status: 502, For: *length / 20}) // three minutes of an hour
	at(0.55)
	for i := range 5 {
		talks(acme, uint64(10+i), *length/1500)
		at(0.6 + float64(i)/50)
	}
	at(0.75)
	acme.Crash()
	at(0.9)
	school.Fault(zulipsim.BadGateway())
	at(1)
	// What is read back comes for as long as the page is looked at.
	lab.Fault(zulipsim.Fault{On: zulipsim.History, Skip: 1, Trickle: 1, TricklePause: 5 * time.Second})
	lab.Crash()
	for b, state := range map[*bridge.Bridge]bridge.State{first: bridge.Following, second: bridge.WaitingZulip,
		third: bridge.Refilling} {
		p.waits(string(state), func() bool { return b.Status().State == state })
	}
	silence() // the browser needs the machine

	b := startBrowser(t)
	b.looks(1280, "light", "no-preference")
	b.open(url + "/")
	b.waits(`document.querySelector("#verdict").textContent === "1 of 4 realms does not do the job: school."`)
	want := []string{"Following", "Reading back", "Waiting for Zulip", "Standing by"}
	if got := b.texts(".badge"); !slices.Equal(got, want) {
		t.Errorf("states %q, want %q", got, want)
	}
	gaps := b.texts("[data-is=gaps]")
	for i, says := range []string{"Zulip dropped the queue1", "Zulip has dropped the queue", "None", "None"} {
		if !strings.Contains(gaps[i], says) {
			t.Errorf("the gaps of realm %d are told as %q, want %q", i, gaps[i], says)
		}
	}

	light := b.picture()
	const ground = "getComputedStyle(document.body).backgroundColor + getComputedStyle(document.body).color"
	colours := b.eval(ground)
	if b.eval("getComputedStyle(document.documentElement).scrollBehavior") != "smooth" {
		t.Error("it jumps")
	}
	b.axe()
	b.looks(1280, "dark", "reduce")
	dark := b.picture()
	if b.eval(ground) == colours || string(light) == string(dark) {
		t.Error("dark looks like light")
	}
	if b.eval("getComputedStyle(document.documentElement).scrollBehavior") != "auto" {
		t.Error("it scrolls smoothly for who does not want that")
	}
	b.axe()
	keyboard(b)
	b.looks(320, "light", "reduce")
	if got := b.eval("document.documentElement.scrollWidth"); got != "320" {
		t.Errorf("on a page of 320 pixels there are %s", got)
	}
	b.axe()

	// What Zulip says is text, whatever it looks like.
	school.Fault(zulipsim.Fault{Status: 500, Body: `{"result":"error","msg":"down <b id=evil>for</b> a while"}`})
	b.waits(`document.querySelector("#realm-3 .reasons").textContent.includes("a while")`)
	if got := b.texts("#realm-3 .reasons, #evil"); len(got) != 1 || !strings.Contains(got[0], "<b id=evil>for</b>") {
		t.Errorf("the reason is told as %q", got)
	}
	if wrong := b.complaints(url); len(wrong) > 0 {
		t.Errorf("it complained, or asked elsewhere:\n%s", strings.Join(wrong, "\n"))
	}
	if *pictures != "" {
		for name, picture := range map[string][]byte{"page.png": light, "page-dark.png": dark} {
			must(t, os.WriteFile(filepath.Join(*pictures, name), fewColours(t, picture), 0o644))
		}
	}
}

// keyboard goes through the page with the tab key, and uses what is there.
func keyboard(b *browser) {
	b.t.Helper()
	var seen []string
	b.eval("document.activeElement.blur()")
	for range 13 {
		b.press("Tab", 9)
		seen = append(seen, b.eval("document.activeElement.textContent.trim().replace(/\\s+/g, ' ')"))
		if style := b.eval("getComputedStyle(document.activeElement).outline"); !strings.Contains(style, "solid 3px") {
			b.t.Errorf("that %q has the focus is shown by %q", seen[len(seen)-1], style)
		}
		switch seen[len(seen)-1] {
		case "Pause":
			b.press("Enter", 13)
			b.waits("document.activeElement.getAttribute('aria-pressed') === 'true'")
			b.press("Enter", 13)
			b.waits("document.activeElement.getAttribute('aria-pressed') === 'false'")
		case "The hour in figures of lab":
			b.press("Enter", 13)
			b.waits("document.activeElement.parentElement.open")
		}
	}
	want := []string{"Skip to the realms", "Pause", "acme Following", "lab Reading back", "school Waiting for Zulip",
		"club Standing by", "The hour in figures of acme", "The hour in figures of lab", "The hour in figures of school",
		"/status", "/metrics", "/healthz", "/readyz"}
	if !slices.Equal(seen, want) {
		b.t.Errorf("the tab key goes to\n%q, want\n%q", seen, want)
	}
	b.eval(`document.querySelector("nav a[href='#realm-3']").focus()`)
	b.press("Enter", 13)
	b.waits(`document.activeElement.id === "realm-3"`)
}

// axe looks the page over for what keeps people from it, if -axe says where it is.
func (b *browser) axe() {
	b.t.Helper()
	if *axe == "" {
		return
	}
	script, err := os.ReadFile(*axe)
	must(b.t, err)
	b.ask("Runtime.evaluate", map[string]any{"expression": string(script)}, nil)
	found := b.eval(`axe.run({resultTypes: ["violations"]}).then((r) => r.violations.map((v) =>
		v.id + ": " + v.help + "\n" + v.nodes.map((n) => n.target + ": " + n.failureSummary).join("\n")).join("\n\n"))`)
	if found != "" {
		b.t.Errorf("axe finds\n%s", found)
	}
}

// fewColours is a picture with the 64 colours that it has most of, which makes it small.
func fewColours(t testing.TB, in []byte) []byte {
	t.Helper()
	full, err := png.Decode(bytes.NewReader(in))
	must(t, err)
	size, often := full.Bounds(), map[color.Color]int{}
	for y := range size.Dy() {
		for x := range size.Dx() {
			often[full.At(x, y)]++
		}
	}
	colours := slices.SortedFunc(maps.Keys(often), func(a, b color.Color) int { return cmp.Compare(often[b], often[a]) })
	few := image.NewPaletted(size, colours[:min(len(colours), 64)])
	draw.Draw(few, size, full, image.Point{}, draw.Src)
	var out bytes.Buffer
	must(t, (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&out, few))
	return out.Bytes()
}
