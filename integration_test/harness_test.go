package integration_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"zulip-nats/bridge"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
	"zulip-nats/subjects"
	"zulip-nats/zulipsim"
)

var (
	kills = flag.Int("kills", defaultKills, "how often TestKill9 kills the bridge")
	seed  = flag.Uint64("seed", 0, "where chance comes from in the tests that kill; 0: a new one, which is printed")
)

// program is the path of the program under test.
var program string

// patience is how long something may take that has to happen. Nothing is tested by it: it only ends a test that will not end.
const patience = 90 * time.Second

func TestMain(m *testing.M) {
	natstest.Main() // does not return in a test binary that was started to be a nats-server
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "zulip-nats-integration-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "zulip-nats")
	args := []string{"build", "-o", program}
	if raceDetector {
		args = append(args, "-race")
	}
	build := exec.Command("go", append(args, ".")...)
	build.Dir = ".."
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go %s: %v\n%s", strings.Join(build.Args[1:], " "), err, out)
		return 1
	}
	// The tests wait more than they compute, so more of them may run at a time than there are processors.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		flag.Set("test.parallel", "12")
	}
	return m.Run()
}

// newRand is chance for one test, from the seed that was given or from a new one.
func newRand(t testing.TB) *rand.Rand {
	s := *seed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d: the same again with -run '^%s$' -seed %d", s, strings.ReplaceAll(t.Name(), "/", "$/^"), s)
	return rand.New(rand.NewPCG(s, 0))
}

// eventually waits until something is true.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for deadline, pause := time.Now().Add(patience), 5*time.Millisecond; !is(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for: %s", patience, what)
		}
		time.Sleep(pause)
	}
}

// world is a Zulip, a realm's place on a nats-server, and the programs between them.
type world struct {
	t     testing.TB
	zulip *zulipsim.Server
	bot   *zulipsim.Account
	realm string
	site  string // URL of Zulip
	nats  string // URL of NATS
	rc    string // path of the zuliprc

	// stream is the stream's name, ZULIP_<realm> unless a test has made another.
	stream string
	js     jetstream.JetStream

	acking sync.Mutex
	acked  map[string]int64 // by queue: up to where the events are known to be stored

	talking sync.Mutex
	sent    []int64 // messages that people may edit or react to

	started  time.Time // when the newest program was
	observer string    // a queue of the test's own, "" without one
}

const (
	realmName = "acme"
	botEmail  = "bridge-bot@example.com"
)

// newWorld makes a world around a nats-server; the simulator may be set up before by configure. Whatever a program acknowledges to Zulip
// without having stored it, and every request that comes too soon after a 429, fails the test.
func newWorld(t testing.TB, natsURL string, configure ...func(*zulipsim.Server)) *world {
	t.Helper()
	w := prepareWorld(t, natsURL, configure...)
	w.zulip.Complain(t, w.isStored)
	w.open("127.0.0.1:0")
	return w
}

// prepareWorld is newWorld with Zulip not up yet, and without the watch on acknowledgements, which is the caller's to begin.
func prepareWorld(t testing.TB, natsURL string, configure ...func(*zulipsim.Server)) *world {
	t.Helper()
	w := &world{t: t, zulip: &zulipsim.Server{}, realm: realmName, nats: natsURL, stream: "ZULIP_" + realmName, acked: map[string]int64{}}
	for _, f := range configure {
		f(w.zulip)
	}
	w.bot = w.zulip.Account(botEmail)
	nc, err := nats.Connect(natsURL, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	if w.js, err = jetstream.New(nc); err != nil {
		t.Fatal(err)
	}
	return w
}

// open starts Zulip and writes the zuliprc.
func (w *world) open(address string) {
	w.t.Helper()
	url, stop, err := w.zulip.Listen(address)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(stop)
	w.site = url
	w.writeRC(w.bot.Key)
}

// writeRC writes the zuliprc that Zulip would serve for the bot, with that key.
func (w *world) writeRC(key string) {
	w.t.Helper()
	keepSecret(key)
	keepSecret(base64.StdEncoding.EncodeToString([]byte(w.bot.Email + ":" + key)))
	if w.rc == "" {
		w.rc = filepath.Join(w.t.TempDir(), "zuliprc")
	}
	writeFile(w.t, w.rc, fmt.Sprintf("[api]\nemail=%s\nkey=%s\nsite=%s\n", w.bot.Email, key, w.site))
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// run starts the program as a user does. It is killed when the test ends.
func (w *world) run(more ...string) *process {
	w.t.Helper()
	w.started = time.Now()
	return start(w.t, append([]string{"run", "--zuliprc", w.rc, "--nats-url", w.nats, "--realm", w.realm}, more...)...)
}

// process is the program at work.
type process struct {
	*journal
	t     testing.TB
	cmd   *exec.Cmd
	ended chan struct{}
}

// start starts the program with these arguments and an environment in which nothing of ours is set.
func start(t testing.TB, args ...string) *process {
	t.Helper()
	p := &process{journal: newJournal(t), t: t, cmd: exec.Command(program, args...), ended: make(chan struct{})}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ZULIP_") && !strings.HasPrefix(v, "NATS_") && !strings.HasPrefix(v, "XDG_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Env = append(p.cmd.Env, "HOME="+homeless)
	p.cmd.Stdout, p.cmd.Stderr = p.journal, p.journal
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C in a terminal is for the test
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(p.kill)
	return p
}

// homeless is a home directory without a zuliprc.
const homeless = "/nonexistent"

// kill is kill -9, and waits for the end.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// stop sends SIGTERM and gives the exit code, and how long the end took.
func (p *process) stop() (code int, took time.Duration) {
	p.t.Helper()
	began := time.Now()
	p.signal(syscall.SIGTERM)
	return p.wait(), time.Since(began)
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatalf("sending %v: %v", s, err)
	}
}

// wait waits until the program ends by itself, and gives its exit code.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		p.t.Fatalf("the program runs on after %v", patience)
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// secrets are what may be in no line of any log.
var secrets struct {
	sync.Mutex
	all []string
}

func keepSecret(s string) {
	secrets.Lock()
	defer secrets.Unlock()
	for _, known := range secrets.all {
		if known == s {
			return
		}
	}
	secrets.all = append(secrets.all, s)
}

// journal is what one program has written, line by line. It is the one place where every log of the suite comes through: a line with a
// secret, a panic or a data race fails the test that ran the program.
type journal struct {
	t    testing.TB
	mu   sync.Mutex
	text []byte // whole lines
	rest []byte // the line that is not whole yet
}

func newJournal(t testing.TB) *journal {
	j := &journal{t: t}
	t.Cleanup(func() {
		if t.Failed() {
			all := j.lines()
			t.Logf("the log, %d lines, the last of them:\n%s", len(all), strings.Join(all[max(0, len(all)-60):], "\n"))
		}
	})
	return j
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rest = append(j.rest, b...)
	end := bytes.LastIndexByte(j.rest, '\n') + 1
	whole := j.rest[:end]
	secrets.Lock()
	for _, s := range secrets.all {
		if bytes.Contains(whole, []byte(s)) {
			j.t.Errorf("a secret is in the log: %s", bytes.ReplaceAll(whole, []byte(s), []byte("<SECRET>")))
		}
	}
	secrets.Unlock()
	for _, s := range []string{"panic:", "fatal error:", "DATA RACE"} {
		if bytes.Contains(whole, []byte(s)) {
			j.t.Errorf("the program broke down: %s", s)
		}
	}
	j.text = append(j.text, whole...)
	j.rest = j.rest[end:]
	return len(b), nil
}

// lines are the whole lines so far.
func (j *journal) lines() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Split(strings.TrimSuffix(string(j.text), "\n"), "\n")
}

// says is whether one line of the log has all of these words.
func (j *journal) says(words ...string) bool { return j.line(words...) != "" }

// line is the first line of the log that has all of these words, whatever their case; "" if there is none.
func (j *journal) line(words ...string) string {
	for _, line := range j.lines() {
		found := true
		for _, word := range words {
			found = found && strings.Contains(strings.ToLower(line), strings.ToLower(word))
		}
		if found {
			return line
		}
	}
	return ""
}

// expect waits for a line with all of these words.
func (j *journal) expect(words ...string) string {
	j.t.Helper()
	eventually(j.t, fmt.Sprintf("a line of the log with %q", words), func() bool { return j.says(words...) })
	return j.line(words...)
}

// runInside runs the bridge inside the test process, with the parts that the program is made of, until stop is called or the test ends.
func runInside(t testing.TB, natsURL, realm string, account poller.Account, path stream.Path, log zerolog.Logger) (stop func()) {
	t.Helper()
	r, err := subjects.ParseRealm(realm)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	nc, err := stream.Connect(ctx, stream.ConnectConfig{URL: natsURL, Name: t.Name(), Log: log})
	if err != nil {
		cancel()
		t.Fatal(err)
	}
	b := bridge.New(bridge.Config{
		Realm: r, Site: account.Site, Account: account.Email, Writer: "inside", Version: "test", Log: log,
		Poller: &poller.Poller{
			Client:  &poller.Client{Account: func() (poller.Account, error) { return account, nil }},
			Options: poller.DefaultOptions(), Log: log,
		},
		Open: func(ctx context.Context) (bridge.Stream, error) {
			s, err := stream.Open(ctx, nc, stream.Config{Realm: realm, Filter: r.All(), Path: path, Version: "test"})
			if err != nil {
				return nil, err
			}
			return s, nil
		},
	})
	var running sync.WaitGroup
	running.Go(func() {
		if err := b.Run(ctx); err != nil && ctx.Err() == nil {
			t.Errorf("the bridge ended: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
		nc.Close()
	})
	t.Cleanup(stop)
	return stop
}

// registered waits until a poll of the program that was started last waits, and gives the queue: it is made and recorded, or resumed.
func (w *world) registered() zulipsim.QueueInfo {
	w.t.Helper()
	var found zulipsim.QueueInfo
	eventually(w.t, "a poll that waits", func() bool {
		for _, q := range w.queues() {
			if q.Dead == "" && q.Waiting && q.LastWait.After(w.started) {
				found = q
				return true
			}
		}
		return false
	})
	return found
}

// polling waits until the program that was started last has polled, for when so much happens that no poll ever waits.
func (w *world) polling() {
	w.t.Helper()
	eventually(w.t, "a poll", func() bool {
		for _, r := range w.zulip.Requests() {
			if r.Kind == zulipsim.Events && r.Time.After(w.started) {
				return true
			}
		}
		return false
	})
}

// queues are the queues that are not the test's own.
func (w *world) queues() []zulipsim.QueueInfo {
	var own []zulipsim.QueueInfo
	for _, q := range w.zulip.Queues() {
		if q.ID != w.observer {
			own = append(own, q)
		}
	}
	return own
}

// settle waits until nothing is pending and a poll waits: all that happened is acknowledged then, and has to be stored.
func (w *world) settle() {
	w.t.Helper()
	eventually(w.t, "an empty queue with a poll that waits", func() bool {
		for _, q := range w.queues() {
			if q.Dead == "" && q.Waiting && q.Pending == 0 {
				return true
			}
		}
		return false
	})
}

// talk lets n things happen at Zulip: mostly messages, and everything that people do with messages.
func (w *world) talk(rng *rand.Rand, n int) {
	people := []string{"ada@example.com", "grace@example.com", "Ünal@example.com"}
	channels := []string{"general", "release > notes", "日本語", "build.* ☂"}
	for range n {
		by := people[rng.IntN(len(people))]
		w.talking.Lock()
		var old int64
		if len(w.sent) > 0 {
			old = w.sent[rng.IntN(len(w.sent))]
		}
		w.talking.Unlock()
		dice := rng.IntN(100)
		if old == 0 {
			dice = 0
		}
		m := zulipsim.Message{Channel: channels[rng.IntN(len(channels))], Topic: "t", Sender: by,
			Content: fmt.Sprintf("**%d** \"quoted\" \\ \U0001f41b `%x`", rng.Uint32(), rng.Uint64())}
		switch {
		case dice < 60:
			id := w.zulip.SendMessage(m)
			w.talking.Lock()
			w.sent = append(w.sent, id)
			w.talking.Unlock()
		case dice < 65:
			m.Channel, m.To = "", []string{botEmail}
			w.zulip.SendMessage(m)
		case dice < 75:
			w.zulip.React(old, by, []string{"tada", "bug", "owl", "fire"}[rng.IntN(4)])
		case dice < 85: // merges while it is not read, which leaves gaps between ids
			w.zulip.Flag(botEmail, "add", []string{"read", "starred"}[rng.IntN(2)], old)
		case dice < 90:
			text := fmt.Sprintf("edited %d", rng.Uint32())
			w.zulip.EditMessage(old, zulipsim.Edit{Content: &text})
		case dice < 95:
			w.zulip.Typing(by, "start", m.Channel, "t")
		default:
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": rng.IntN(100), "status_text": "büsy"})
		}
	}
}

// chat is talk at a pace, so many happenings a second, until stop is called.
func (w *world) chat(chance *rand.Rand, perSecond int) (stop func()) {
	rng := rand.New(rand.NewPCG(chance.Uint64(), 1)) // the caller goes on with its own
	ctx, cancel := context.WithCancel(context.Background())
	var talking sync.WaitGroup
	talking.Go(func() {
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.talk(rng, 1)
			case <-ctx.Done():
				return
			}
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		talking.Wait()
	})
	w.t.Cleanup(stop)
	return stop
}

// natsServer is a nats-server inside the test process.
func natsServer(t testing.TB) string { return natstest.Start(t).URL }

// unlimited switches Zulip's rate limits off, for tests that start the program again and again.
func unlimited(z *zulipsim.Server) {
	z.EventsRules, z.APIRules = []zulipsim.RateRule{}, []zulipsim.RateRule{}
}

// lastStored is the newest message of the realm; nil if there is none or NATS does not answer.
func (w *world) lastStored() (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := w.js.Stream(ctx, w.stream)
	if err != nil {
		return nil, err
	}
	m, err := s.GetLastMsgForSubject(ctx, "zulip."+w.realm+".>")
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil, nil
	}
	return m, err
}
