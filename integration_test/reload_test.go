package integration_test

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sys/unix"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// watchTime is how long a program is watched that must not do something: longer than a
// change of a file takes to be read.
const watchTime = 3 * time.Second

// livesOn fails the test if the program ends while it is watched.
func livesOn(t testing.TB, p *harness.Process, after string) {
	t.Helper()
	if harness.Within(watchTime, func() bool { return !p.Alive() }) {
		t.Errorf("the program ended with exit code %d after %s", p.ExitCode(), after)
	}
}

// One realm, no file, no --realm: the zuliprc is taken away while the program runs, as by
// whoever puts another one in its place in two steps, or is cut off while it is written.
// Before there were reloads nobody looked at it until Zulip refused the key.
func TestReloadWithoutTheZuliprc(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		trouble func(testing.TB, string, *harness.Process)
	}{
		{"removed", func(t testing.TB, rc string, _ *harness.Process) { harness.Must(t, os.Remove(rc)) }},
		{"half written", func(t testing.TB, rc string, _ *harness.Process) { harness.WriteFile(t, rc, "[api]\nemail=") }},
		{"not readable, and SIGHUP", func(t testing.TB, rc string, p *harness.Process) {
			harness.Must(t, os.Rename(rc, rc+".aside"))
			harness.Must(t, os.Mkdir(rc, 0o700))
			p.Signal(syscall.SIGHUP)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, natsServer(t))
			w.started = time.Now()
			p := start(t, "run", "--zuliprc", w.rc, "--nats-url", w.nats)
			w.registered()
			c.trouble(t, w.rc, p)
			livesOn(t, p, "its zuliprc was "+c.name)
		})
	}
}

// A storm of SIGHUP while some realms have no zuliprc: those wait for their turn to be
// tried again when the next reload comes.
func TestReloadStorm(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	text := fmt.Sprintf("[nats]\nnats-url = %s\n[realm \"r0\"]\nemail = %s\nkey = %s\nsite = %s\n", f.nats, botEmail, f.keys[0],
		f.realms[0].site)
	for i := range 20 {
		text += fmt.Sprintf("[realm \"absent%d\"]\nzuliprc = not-there-%d.rc\n", i, i)
	}
	harness.WriteFile(t, f.config, text)
	p := f.run()
	f.realms[0].registered()
	for range 50 {
		p.Signal(syscall.SIGHUP)
		time.Sleep(20 * time.Millisecond)
	}
	livesOn(t, p, "a storm of SIGHUP")
}

// A zuliprc that is a pipe is read by a reload too, and opening one that nobody writes to
// waits for ever: the stop waits with it.
func TestReloadOfAPipe(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	text, err := os.ReadFile(w.rc)
	harness.Must(t, err)
	pipe := filepath.Join(t.TempDir(), "zuliprc")
	harness.Must(t, unix.Mkfifo(pipe, 0o600))
	give := func() {
		out, err := os.OpenFile(pipe, os.O_WRONLY, 0)
		if err == nil {
			_, _ = out.Write(text)
			_ = out.Close()
		}
		time.Sleep(200 * time.Millisecond) // so that the reader has come to its end
	}
	go func() { give(); give() }() // it is read twice at a start, as it always was
	w.started = time.Now()
	p := start(t, "run", "--zuliprc", pipe, "--nats-url", w.nats, "--realm", w.realm)
	w.registered()
	p.Signal(syscall.SIGHUP)
	livesOn(t, p, "SIGHUP")
	p.Signal(syscall.SIGTERM)
	if !harness.Within(20*time.Second, func() bool { return !p.Alive() }) {
		t.Error("SIGTERM does not end it: a stop should take less than five seconds")
	}
}

// A key is exchanged by a reload. Then an account that cannot be read is told of, and the
// realm goes on as it was: with the new key, and not with that of the start.
func TestReloadKeepsTheNewestKey(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	w := f.realms[0]
	p := f.run()
	w.registered()
	f.keys[0] = w.bot.RegenerateKey()
	harness.KeepSecret(f.keys[0])
	f.configure()
	p.Expect(`"event":"reloaded"`, `"new_keys":["r0"]`, `"unchanged":2`)
	w.mark(1)
	w.settle()

	f.more = map[int]string{0: "client_cert = not-there.pem\n"}
	f.configure()
	p.Expect("reload_failed", "not-there.pem")
	w.mark(3)
	if harness.Within(30*time.Second, func() bool { return p.Says("realm_halted", w.realm) || p.Says("key_refused", w.realm) }) {
		t.Error("the realm that was to go on as it was is refused: it goes on with the key of the start")
	}
}

// A realm is added whose site is not there. That is its own trouble: what has come up
// stays so, for /readyz "turns once".
func TestReloadStaysReady(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	f.only = []int{0}
	f.configure()
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
	p := start(t, "run", "--config", f.config, "--http", address)
	f.realms[0].registered()
	ready := func() int {
		answer, err := http.Get("http://" + address + "/readyz")
		harness.Must(t, err)
		defer answer.Body.Close()
		return answer.StatusCode
	}
	harness.Eventually(t, "it to be ready", func() bool { return ready() == 200 })
	f.realms[1].site = "http://127.0.0.1:1"
	f.only = nil
	f.configure()
	p.Expect(`"event":"reloaded"`, `"added":["r1"]`)
	p.Expect("zulip_away", "r1")
	if got := ready(); got != 200 {
		t.Errorf("/readyz is %d since a realm was added whose site is not there", got)
	}
}

// Settings are changed while they are put in force, which takes as long as the first
// attempt to connect to NATS. The change is not lost.
func TestReloadChangedMeanwhile(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	// What listens there takes connections and says nothing, once; then it is the server.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	harness.Must(t, err)
	t.Cleanup(func() { l.Close() })
	held := make(chan net.Conn, 100)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			held <- c
		}
	}()
	f.nats = "nats://" + l.Addr().String()
	f.only = []int{0}
	f.configure()
	p := f.run()
	c := <-held
	defer c.Close()
	f.only = []int{0, 1}
	f.configure()
	time.Sleep(time.Second) // it is read 0.3 s later, and waits for the connection
	f.only = []int{0, 1, 2}
	f.configure()
	p.Expect(`"event":"reloaded"`)
	if !harness.Within(20*time.Second, func() bool { return p.Says(`"event":"reloaded"`, `"added":["r2"]`) }) {
		t.Errorf("the second change never came into force: %s", strings.Join(p.Lines(`"event":"reloaded"`), "\n"))
	}
}

// A realm is stopped and started by reloads. What it had at NATS and in the program goes
// with it.
func TestReloadLeavesNothing(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	w := f.realms[1]
	address := fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
	p := start(t, "run", "--config", f.config, "--http", address, "--pprof")
	f.realms[0].registered()
	w.registered()
	var text []byte
	goroutines := func() int {
		answer, err := http.Get("http://" + address + "/debug/pprof/goroutine?debug=1")
		harness.Must(t, err)
		defer answer.Body.Close()
		text, err = io.ReadAll(answer.Body)
		harness.Must(t, err)
		n := 0
		_, err = fmt.Sscanf(string(text), "goroutine profile: total %d", &n)
		harness.Must(t, err)
		return n
	}
	again := func(n int) {
		for range n {
			reloads := len(p.Lines(`"event":"reloaded"`))
			f.more = map[int]string{1: fmt.Sprintf("oversize-wait = %ds\n", 60+rand.IntN(10000))}
			w.started = time.Now()
			f.configure()
			p.ExpectAgain(reloads, `"event":"reloaded"`)
			w.registered()
			w.mark(1)
			w.settle()
		}
	}
	again(2)
	before := goroutines()
	const times = 10
	again(times)
	if after := goroutines(); after >= before+times {
		t.Errorf("%d goroutines, and %d after %d more reloads of one realm:\n%s", before, after, times,
			strings.Join(strings.SplitN(string(text), "\n\n", 6)[:5], "\n\n"))
	}
}

// One realm's Zulip sends an answer of 100 MB. The others go on, and the program does not
// grow by it. (go run ./bench -only memory has one of a gigabyte.)
func TestFleetLargeAnswer(t *testing.T) {
	f := newFleet(t, 2)
	good, bad := f.realms[0], f.realms[1]
	p := f.run()
	good.registered()
	bad.registered()
	bad.zulip.Fault(zulipsim.Fault{On: zulipsim.Events, Status: 200, Times: 1, Header: http.Header{"Content-Type": {"application/json"}},
		Body: `{"result":"success","msg":"","events":[` + strings.Repeat(`{"type":"typing","id":0,"x":"`+strings.Repeat("x", 100<<10)+`"},`,
			1<<10) + `{"type":"heartbeat","id":0}],"queue_id":"x"}`})
	stop := good.chat(rand.New(rand.NewPCG(1, 1)), 20)
	bad.mark(1) // ends the poll that waits; the next gets the answer
	most := 0
	for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(50 * time.Millisecond) {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.PID()))
		harness.Must(t, err)
		var size, resident int
		_, _ = fmt.Sscan(string(text), &size, &resident)
		most = max(most, resident*os.Getpagesize())
	}
	stop()
	good.settle()
	good.check().clean(t)
	t.Logf("at most %d MiB", most>>20)
	if most > 120<<20 {
		t.Errorf("%d MiB of memory with an answer of 100 MB", most>>20)
	}
	livesOn(t, p, "an answer of 100 MB")
}

// One realm names a large file as its zuliprc, an image of a disk say. That is told, as it
// is for each file of more than 64 KiB; the program does not read it as a whole.
func TestFleetLargeFile(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 1)
	large := filepath.Join(t.TempDir(), "disk.img")
	harness.WriteFile(t, large, "")
	harness.Must(t, os.Truncate(large, 2<<30))
	harness.WriteFile(t, f.config, fmt.Sprintf("[nats]\nnats-url = %s\n[realm \"r0\"]\nemail = %s\nkey = %s\nsite = %s\n"+
		"[realm \"large\"]\nzuliprc = %s\n", f.nats, botEmail, f.keys[0], f.realms[0].site, large))
	p := f.run()
	p.Expect("realm_halted", "large", "so it is another file")
	f.realms[0].registered()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.PID()))
	harness.Must(t, err)
	for line := range strings.Lines(string(text)) {
		var kB int
		if n, _ := fmt.Sscanf(line, "VmHWM: %d kB", &kB); n == 1 && kB > 256<<10 {
			t.Errorf("it has taken %d MB of memory", kB>>10)
		}
	}
}

// Two realms are kept in one stream, by one program: neither stops the other.
func TestFleetTwoRealmsOneStream(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	natstest.CreateStream(t, f.realms[0].js, jetstream.StreamConfig{Name: "ALL", Subjects: []string{"zulip.r0.>", "zulip.r1.>"}})
	f.more = map[int]string{0: "stream = ALL\n", 1: "stream = ALL\n"}
	f.configure()
	p := f.run()
	rng := harness.Rand(t)
	for _, w := range f.realms {
		w.stream = "ALL"
		w.registered()
	}
	a, b := f.realms[0].chat(rng, 50), f.realms[1].chat(rng, 50)
	time.Sleep(*fleetStage)
	a()
	b()
	for _, w := range f.realms {
		w.settle()
		if n := len(w.queues()); n != 1 {
			t.Errorf("%d queues", n)
		}
	}
	for _, line := range append(p.Lines(`"level":"error"`), p.Lines("overtaken")...) {
		t.Error(line)
	}
}

// One realm, no file, no --realm: another site in the zuliprc was "restart to follow it"
// before there were reloads, and is no reason to leave the organization that is followed.
func TestReloadOfAnotherSite(t *testing.T) {
	t.Parallel()
	w := newWorld(t, natsServer(t))
	w.started = time.Now()
	p := start(t, "run", "--zuliprc", w.rc, "--nats-url", w.nats)
	w.registered()
	harness.WriteZuliprc(t, w.rc, w.bot.Email, w.bot.Key, "http://localhost:1")
	p.Expect(`"event":"reload`)
	if lines := p.Lines(`"event":"reloaded"`, `"removed":["127-0-0-1"]`); len(lines) > 0 {
		t.Errorf("the organization is left: %s", lines[0])
	}
}

// All realms are halted, each for another reason: 78, and every reason is told.
func TestFleetAllHalted(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 3)
	natstest.CreateStream(t, f.realms[2].js, jetstream.StreamConfig{Name: f.realms[2].stream,
		Subjects: []string{"zulip.r2.>"}, Retention: jetstream.WorkQueuePolicy})
	f.keys[0] = strings.Repeat("x", 32)
	f.configure()
	text, err := os.ReadFile(f.config)
	harness.Must(t, err)
	harness.WriteFile(t, f.config, strings.Replace(string(text), "email = "+botEmail+"\nkey = "+f.keys[1]+"\nsite = "+f.realms[1].site,
		"zuliprc = not-there.rc", 1))
	p := f.run()
	if code := p.ExitCode(); code != 78 {
		t.Errorf("exit code %d", code)
	}
	for _, words := range [][]string{{"r0", "does not let"}, {"r1", "not-there.rc"}, {"r2", "retention"}} {
		if !p.Says(words...) {
			t.Errorf("nothing is said of %s", words)
		}
	}
}

// The file is written anew so that others may read it, and there are keys in it: that is
// told, with what to do. It is done, and then the change comes into force.
func TestReloadAfterChmod(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	f.only = []int{0}
	f.configure()
	p := f.run()
	f.realms[0].registered()
	f.only = nil
	next := f.config
	f.config = filepath.Join(t.TempDir(), "next")
	f.configure()
	harness.Must(t, os.Chmod(f.config, 0o644))
	harness.Must(t, os.Rename(f.config, next))
	p.Expect("reload_failed", "chmod 600")
	harness.Must(t, os.Chmod(next, 0o600))
	if !harness.Within(10*time.Second, func() bool { return p.Says(`"event":"reloaded"`, `"added":["r1"]`) }) {
		t.Error("what the error says was done, and nothing comes of it")
	}
}

// A realm is halted since a file that its account names is missing. The file comes, and the
// realm is tried again.
func TestReloadCertificate(t *testing.T) {
	t.Parallel()
	f := newFleet(t, 2)
	bundle := filepath.Join(filepath.Dir(f.config), "ca.pem")
	f.more = map[int]string{1: "cert_bundle = ca.pem\n"}
	f.configure()
	p := f.run()
	f.realms[0].registered()
	p.Expect("realm_halted", "r1", "ca.pem")
	harness.WriteFile(t, bundle, "")
	if !harness.Within(10*time.Second, func() bool { return p.Says(`"event":"reloaded"`, `"retried":["r1"]`) }) {
		t.Error("the file that was missing is there, and the realm is not tried again")
	}
}
