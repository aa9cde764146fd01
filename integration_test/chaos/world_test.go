package chaos_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

var (
	kills     = flag.Int("kills", defaultKills, "how often TestChaos kills, stops or pauses a process, in all scenarios together")
	chaosSeed = flag.Uint64("chaosseed", 0, "where chance comes from; 0: a new seed, which is printed")
	logs      = flag.String("logs", "", "a `folder` in which the logs of all programs and servers are kept")
)

// program is the path of the program under test.
var program string

// patience is how long something may take that has to happen. Nothing is tested by it: it only ends a test that will not end.
const patience = 2 * time.Minute

func TestMain(m *testing.M) {
	signal.Ignore(syscall.SIGXFSZ) // a write beyond a limit is an error then, and not the end of the server
	natstest.Main()                // does not return in a test binary that was started to be a nats-server
	flag.Parse()
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	dir, err := os.MkdirTemp("", "zulip-nats-chaos-")
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
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "go %s: %v\n%s", strings.Join(build.Args[1:], " "), err, out)
		return 1
	}
	// The tests wait more than they compute, so more of them may run at a time than there are processors.
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		flag.Set("test.parallel", "10")
	}
	return m.Run()
}

// seedOf is the seed that was given, or a new one, which is printed.
func seedOf(t testing.TB) uint64 {
	s := *chaosSeed
	if s == 0 {
		s = rand.Uint64()
	}
	t.Logf("seed %d: the same plan again with -run '^%s$' -chaosseed %d", s, strings.ReplaceAll(t.Name(), "/", "$/^"), s)
	return s
}

// within waits until something is true, and says whether it came to be.
func within(limit time.Duration, is func() bool) bool {
	for deadline, pause := time.Now().Add(limit), 5*time.Millisecond; !is(); pause = min(2*pause, 200*time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(pause)
	}
	return true
}

// eventually is within for what has to come: the test ends here if it does not. Only for the test's own goroutine.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	if !within(patience, is) {
		t.Fatalf("waited %v for: %s", patience, what)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// world is one organization: a Zulip, a realm's place on NATS, and what the test knows of both.
type world struct {
	t      testing.TB
	zulip  *zulipsim.Server
	realm  string
	stream string // ZULIP_<realm>
	nats   string // URL of NATS for the program
	rc     string // path of the zuliprc
	nc     *nats.Conn
	js     jetstream.JetStream // the test's own view

	mu    sync.Mutex
	acked map[key]time.Time // when Zulip was first told that an event may be forgotten

	talking sync.Mutex
	sent    []int64 // messages that people may edit or react to
}

// key names an event: ids count anew in each queue.
type key struct {
	queue string
	id    int64
}

const botEmail = "bridge-bot@example.com"

// newWorld makes a world. The program connects to natsURL, the test itself to view, which is the same unless something stands between;
// it may be down still. What Zulip complains about fails the test, but for what configure tolerates.
func newWorld(t testing.TB, realm, natsURL, view string, configure ...func(*zulipsim.Server)) *world {
	t.Helper()
	w := &world{t: t, realm: realm, stream: "ZULIP_" + realm, nats: natsURL, acked: map[key]time.Time{}}
	// Programs are started so often that the limits which Zulip ships with would be all that the test waits for.
	w.zulip = &zulipsim.Server{EventsRules: []zulipsim.RateRule{}, APIRules: []zulipsim.RateRule{}, OnAck: w.onAck}
	for _, f := range configure {
		f(w.zulip)
	}
	bot := w.zulip.Account(botEmail)
	w.zulip.Complain(t, nil) // what is stored is compared at the end, with the times
	site := w.zulip.Start(t)
	w.rc = filepath.Join(t.TempDir(), "zuliprc")
	writeFile(t, w.rc, fmt.Sprintf("[api]\nemail=%s\nkey=%s\nsite=%s\n", bot.Email, bot.Key, site))
	nc, err := nats.Connect(view, nats.RetryOnFailedConnect(true), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
		nats.PingInterval(2*time.Second))
	must(t, err)
	t.Cleanup(nc.Close)
	w.nc = nc
	w.js, err = jetstream.New(nc)
	must(t, err)
	return w
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.WriteFile(path, []byte(text), 0o600))
}

// onAck notes when an event was acknowledged first: Zulip is about to forget it.
func (w *world) onAck(queue string, id int64, _ []byte) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, again := w.acked[key{queue, id}]; !again {
		w.acked[key{queue, id}] = now
	}
}

// run starts the program; what it says goes to j, which may belong to several starts.
func (w *world) run(j *journal, more ...string) (*process, error) {
	return start(j, append([]string{"run", "--zuliprc", w.rc, "--nats-url", w.nats, "--realm", w.realm, "--log-format", "json"}, more...)...)
}

// follow starts the program for a test that runs one of it, and kills it when the test ends.
func (w *world) follow(more ...string) *process {
	w.t.Helper()
	p, err := w.run(newJournal(w.t, w.realm), more...)
	must(w.t, err)
	w.t.Cleanup(p.kill)
	return p
}

// process is the program at work.
type process struct {
	*journal
	cmd    *exec.Cmd
	before int // size of the journal before it was started
	ended  chan struct{}
}

func start(j *journal, args ...string) (*process, error) {
	p := &process{journal: j, cmd: exec.Command(program, args...), before: j.size(), ended: make(chan struct{})}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ZULIP_") && !strings.HasPrefix(v, "NATS_") && !strings.HasPrefix(v, "XDG_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Stdout, p.cmd.Stderr = j, j
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C in a terminal is for the test
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// pid is part of the writer's name in the stream.
func (p *process) pid() int { return p.cmd.Process.Pid }

// wrote says whether a message's Bridge-Writer is this process: <host>-<pid>-<some letters>.
func (p *process) wrote(writer string) bool {
	return strings.Contains(writer, fmt.Sprintf("-%d-", p.pid()))
}

// kill is kill -9, and waits for the end. It may be called twice.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// stop is SIGTERM, and waits for the end, which has to be a clean one. Before its first line the program may not have got to handling
// signals yet; then it just ends.
func (p *process) stop() error {
	silent := p.size() == p.before
	p.signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(patience):
		return fmt.Errorf("the program runs on %v after SIGTERM", patience)
	}
	switch state := p.cmd.ProcessState; {
	case state.ExitCode() == 0:
		return nil
	case silent && state.Sys().(syscall.WaitStatus).Signaled() && state.Sys().(syscall.WaitStatus).Signal() == syscall.SIGTERM:
		return nil
	default:
		return fmt.Errorf("%v after SIGTERM", state)
	}
}

// signal fails only where the process is gone, which shows by itself.
func (p *process) signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

func (p *process) pause()  { p.signal(syscall.SIGSTOP) }
func (p *process) resume() { p.signal(syscall.SIGCONT) }

func (p *process) alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// journal is what programs have written, line by line. A panic or a data race fails the test.
type journal struct {
	t    testing.TB
	file *os.File // nil unless logs are kept

	mu   sync.Mutex
	text []byte // whole lines
	rest []byte // the line that is not whole yet
}

func newJournal(t testing.TB, name string) *journal {
	t.Helper()
	j := &journal{t: t}
	if *logs != "" {
		must(t, os.MkdirAll(*logs, 0o700))
		f, err := os.CreateTemp(*logs, strings.ReplaceAll(t.Name(), "/", "_")+"-"+name+"-*.log")
		must(t, err)
		t.Cleanup(func() { f.Close() })
		j.file = f
	}
	t.Cleanup(func() {
		if t.Failed() {
			all := j.lines()
			t.Logf("the log of %s, %d lines, the last of them:\n%s", name, len(all), strings.Join(all[max(0, len(all)-40):], "\n"))
		}
	})
	return j
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.file != nil {
		j.file.Write(b)
	}
	j.rest = append(j.rest, b...)
	end := bytes.LastIndexByte(j.rest, '\n') + 1
	whole := j.rest[:end]
	for _, s := range []string{"panic:", "fatal error:", "DATA RACE"} {
		if bytes.Contains(whole, []byte(s)) {
			j.t.Errorf("the program broke down: %s", s)
		}
	}
	j.text = append(j.text, whole...)
	j.rest = j.rest[end:]
	return len(b), nil
}

// size is how much was written so far.
func (j *journal) size() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.text)
}

// lines are the whole lines so far.
func (j *journal) lines() []string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Split(strings.TrimSuffix(string(j.text), "\n"), "\n")
}

// all are the lines that have all of these words, whatever their case.
func (j *journal) all(words ...string) (found []string) {
	for _, line := range j.lines() {
		has := true
		for _, word := range words {
			has = has && strings.Contains(strings.ToLower(line), strings.ToLower(word))
		}
		if has {
			found = append(found, line)
		}
	}
	return found
}

// expect waits for a line with all of these words, puts it in the test's own log, since it is what an operator reads, and returns it.
func (j *journal) expect(words ...string) string {
	j.t.Helper()
	return j.expectAgain(0, words...)
}

// expectAgain is expect for one line more than there were.
func (j *journal) expectAgain(before int, words ...string) string {
	j.t.Helper()
	eventually(j.t, fmt.Sprintf("line %d of the log with %q", before+1, words), func() bool { return len(j.all(words...)) > before })
	line := j.all(words...)[before]
	j.t.Log(line)
	return line
}

// queues are what Zulip has for the program.
func (w *world) queues() []zulipsim.QueueInfo { return w.zulip.Queues() }

// polled waits until a poll waits, and returns its queue.
func (w *world) polled() zulipsim.QueueInfo {
	w.t.Helper()
	var found zulipsim.QueueInfo
	eventually(w.t, "a poll of "+w.realm+" that waits", func() bool {
		for _, q := range w.queues() {
			if q.Dead == "" && q.Waiting {
				found = q
				return true
			}
		}
		return false
	})
	return found
}

// settle waits until nothing is pending and a poll waits: all that happened is acknowledged then, and has to be stored.
func (w *world) settle() {
	w.t.Helper()
	eventually(w.t, "an empty queue of "+w.realm+" with a poll that waits", func() bool {
		for _, q := range w.queues() {
			if q.Dead == "" && q.Waiting && q.Pending == 0 {
				return true
			}
		}
		return false
	})
}

// last is the newest message of the realm; nil if there is none.
func (w *world) last() (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	s, err := w.js.Stream(ctx, w.stream)
	if err != nil {
		return nil, err
	}
	return s.GetLastMsgForSubject(ctx, "zulip."+w.realm+".>")
}

// writer is who stored the newest message, "" if that cannot be said now.
func (w *world) writer() string {
	if m, err := w.last(); err == nil {
		return m.Header.Get("Bridge-Writer")
	}
	return ""
}

// talk lets n things happen at Zulip: messages, and what people do with them.
func (w *world) talk(rng *rand.Rand, n int) {
	people := []string{"ada@example.com", "grace@example.com", "Ünal@example.com"}
	channels := []string{"general", "release > notes", "日本語"}
	for range n {
		by := people[rng.IntN(len(people))]
		w.talking.Lock()
		var old int64
		if len(w.sent) > 0 {
			old = w.sent[rng.IntN(len(w.sent))]
		}
		w.talking.Unlock()
		switch dice := rng.IntN(100); {
		case dice < 25 || old == 0:
			id := w.zulip.SendMessage(zulipsim.Message{Channel: channels[rng.IntN(len(channels))], Topic: "t", Sender: by,
				Content: fmt.Sprintf("**%d** \"quoted\" \\ \U0001f41b `%x`", rng.Uint32(), rng.Uint64())})
			w.talking.Lock()
			w.sent = append(w.sent, id)
			w.talking.Unlock()
		case dice < 35:
			w.zulip.React(old, by, []string{"tada", "bug", "owl", "fire"}[rng.IntN(4)])
		case dice < 40:
			text := fmt.Sprintf("edited %d", rng.Uint32())
			w.zulip.EditMessage(old, zulipsim.Edit{Content: &text})
		default:
			w.zulip.Emit(map[string]any{"type": "user_status", "user_id": rng.IntN(100), "status_text": strings.Repeat("büsy ", rng.IntN(40))})
		}
	}
}

// sized makes one event of that many bytes and a little more.
func (w *world) sized(size int) {
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": strings.Repeat("x", size)})
}

// random makes one event of that many bytes and a little more that hardly compress.
func (w *world) random(rng *rand.Rand, size int) {
	b := make([]byte, size/2)
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	w.zulip.Emit(map[string]any{"type": "user_status", "user_id": 7, "status_text": hex.EncodeToString(b)})
}

// chat is talk without end, one by one and in bursts, until stop is called. size is how many happenings a burst has at most.
func (w *world) chat(seed uint64, burst int) (stop func()) {
	rng := rand.New(rand.NewPCG(seed, 1))
	ctx, cancel := context.WithCancel(context.Background())
	var talking sync.WaitGroup
	talking.Go(func() {
		for ctx.Err() == nil {
			switch dice := rng.IntN(300); {
			case dice < 3 && burst > 0:
				w.talk(rng, 1+rng.IntN(burst))
			case dice == 3:
				w.sized(60_000 + rng.IntN(60_000))
			case dice == 4 && burst > 0: // more than a message may have
				w.sized(1_100_000)
			default:
				w.talk(rng, 1)
			}
			select {
			case <-time.After(time.Duration(rng.ExpFloat64() * float64(30*time.Millisecond))):
			case <-ctx.Done():
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

// makeStream makes the realm's stream as an operator does, or changes it.
func (w *world) makeStream(replicas int) {
	w.t.Helper()
	eventually(w.t, "stream "+w.stream+" to be made", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_, err := w.js.CreateStream(ctx, jetstream.StreamConfig{
			Name: w.stream, Subjects: []string{"zulip." + w.realm + ".>"}, Replicas: replicas, Compression: jetstream.S2Compression,
			AllowDirect: true, AllowMsgTTL: true, AllowAtomicPublish: true, AllowBatchPublish: true,
		})
		return err == nil
	})
}
