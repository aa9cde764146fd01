//go:build examples && unix

package examples

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

var (
	browser = flag.String("browser", "browser", "a `folder` with the nats.js that browser/package.json makes")
	natsCLI = flag.String("nats-command", "nats", "the path of the nats command")
	python  = flag.String("python", "python3", "the Python that has what python/requirements.txt names")
	node    = flag.String("node", "node", "a `folder` with what node/package.json names in its node_modules, "+
		"for which that of the example is copied there")
)

func TestMain(m *testing.M) { harness.Main(m, 4) }

// world is a Zulip, a NATS server that can be stopped, and the bridge between them.
type world struct {
	t     testing.TB
	zulip *zulipsim.Server
	nats  *natstest.Process
	js    jetstream.JetStream
	site  string // URL of Zulip
	dir   string // where services keep their files

	webSocket  string // address of NATS for browsers
	violations bool   // whether somebody is meant to be refused something

	options []string // of the bridge
	bridge  *harness.Process
	journal *harness.Journal
	started time.Time // when the bridge was

	said      int            // messages
	newcomers int            // people who wrote in #welcome
	reactions map[string]int // that the queue told of, by emoji
}

// newWorld makes a world in which NATS knows the users that a page shows. In the world of
// README.md nobody is refused anything, unless violations says otherwise.
func newWorld(t testing.TB, page string) *world {
	t.Helper()
	w := &world{t: t, dir: t.TempDir(), reactions: map[string]int{}, violations: page != "README.md",
		journal: harness.NewJournal(t, "bridge"),
		zulip: &zulipsim.Server{MaxMessageLength: 2 << 20, EventsRules: []zulipsim.RateRule{},
			APIRules: []zulipsim.RateRule{}}}
	w.webSocket = fmt.Sprintf("127.0.0.1:%d", natstest.FreePort(t))
	w.nats = natstest.StartProcess(t, users(t, page)+fmt.Sprintf(`
no_auth_user: operator # the test itself
websocket { listen: %q, no_tls: true }
`, w.webSocket))
	t.Cleanup(func() { // what somebody was not allowed to
		text, err := os.ReadFile(w.nats.LogFile())
		harness.Must(t, err)
		for line := range strings.Lines(string(text)) {
			if !w.violations && strings.Contains(line, "Violation") {
				t.Errorf("a right is missing in README.md: %s", line)
			}
		}
	})
	w.js = w.nats.JetStream()
	w.site = w.zulip.Start(t)
	for _, channel := range []string{"welcome", "ops", "general"} {
		w.zulip.Channel(channel)
	}
	w.account("bridge-bot@example.com", "bridge")
	w.account("greeter-bot@example.com", "greeter")
	return w
}

// block is a piece of a page: code, commands, or what the piece before printed.
type block struct {
	kind, text string
	line       int
}

// blocks are the pieces of a page.
func blocks(t testing.TB, page string) (all []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	harness.Must(t, err)
	for _, m := range regexp.MustCompile("(?ms)^```(\\w+)\n(.*?)^```$").FindAllSubmatchIndex(text, -1) {
		all = append(all, block{kind: string(text[m[2]:m[3]]), text: string(text[m[4]:m[5]]),
			line: 1 + strings.Count(string(text[:m[0]]), "\n")})
	}
	return all
}

// users is the configuration that a page shows, with passwords.
func users(t testing.TB, page string) string {
	t.Helper()
	for _, b := range blocks(t, page) {
		if b.kind == "conf" {
			return regexp.MustCompile(`\$[A-Z]+_PASSWORD`).ReplaceAllStringFunc(b.text, func(name string) string {
				user := strings.ToLower(strings.TrimSuffix(name[1:], "_PASSWORD"))
				harness.KeepSecret(password(user))
				return password(user)
			})
		}
	}
	t.Fatalf("%s shows no configuration", page)
	return ""
}

func password(user string) string { return "theOneOf" + user }

// as is the URL of NATS for a user.
func (w *world) as(user string) string {
	return strings.Replace(w.nats.URL, "://", "://"+user+":"+password(user)+"@", 1)
}

// account makes a bot, and its zuliprc in the world's folder.
func (w *world) account(email, name string) {
	w.t.Helper()
	bot := w.zulip.Account(email)
	harness.WriteZuliprc(w.t, w.path(name), email, bot.Key, w.site)
}

// layouts runs a test in a stream by type and in one by place.
func layouts(t *testing.T, test func(t *testing.T, options ...string)) {
	t.Parallel()
	for _, layout := range []string{"by-type", "by-place"} {
		t.Run(layout, func(t *testing.T) {
			t.Parallel()
			test(t, "--subjects", layout)
		})
	}
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

// start starts the bridge, and waits until it polls.
func (w *world) start(more ...string) {
	w.t.Helper()
	w.started = time.Now()
	p, err := harness.Start(w.journal, append([]string{"run", "--zuliprc", w.path("bridge"), "--nats-url", w.nats.URL,
		"--realm", "acme", "--no-lease"}, slices.Concat(w.options, more)...)...)
	harness.Must(w.t, err)
	w.t.Cleanup(p.Kill)
	w.bridge = p
	harness.EventuallyQueue(w.t, "a poll that waits", w.zulip.Queues, func(q zulipsim.QueueInfo) bool {
		return q.Waiting && q.LastWait.After(w.started)
	})
}

// settle waits until all that happened is stored.
func (w *world) settle() {
	w.t.Helper()
	harness.EventuallyQueue(w.t, "an empty queue with a poll that waits", w.zulip.Queues,
		func(q zulipsim.QueueInfo) bool { return q.Waiting && q.Pending == 0 })
}

// say lets somebody write a message with a word that no other one has.
func (w *world) say(channel, sender, text string) int64 {
	w.said++
	return w.zulip.SendMessage(zulipsim.Message{Channel: channel, Topic: "day " + fmt.Sprint(w.said%7), Sender: sender,
		Content: fmt.Sprintf("word%d %s", w.said, text)})
}

// newcomer lets somebody new write in #welcome, and gives their name.
func (w *world) newcomer(text string) string {
	w.newcomers++
	name := fmt.Sprintf("Newcomer%d", w.newcomers)
	w.zulip.Person(name+"@example.com", name)
	w.say("welcome", name+"@example.com", text)
	return name
}

// react puts an emoji on a message, in front of the bridge.
func (w *world) react(id int64, emoji string) {
	w.zulip.React(id, "grace@example.com", emoji)
	w.reactions[emoji]++
}

// talk lets people do a bit of everything, and gives the newcomers' names.
func (w *world) talk() []string {
	first := w.say("ops", "ada@example.com", "it is down")
	w.react(first, "fire")
	name := w.newcomer("hello everybody")
	second := w.say("general", "grace@example.com", "lunch?")
	w.react(second, "pizza")
	w.zulip.Unreact(second, "grace@example.com", "pizza")
	w.reactions["pizza"]--
	text := fmt.Sprintf("corrected%d it is up again", w.said)
	w.zulip.EditMessage(first, zulipsim.Edit{Content: &text})
	topic, place := "moved here", "general"
	w.zulip.EditMessage(first, zulipsim.Edit{Topic: &topic, Channel: &place})
	w.zulip.SendMessage(zulipsim.Message{To: []string{"bridge-bot@example.com"}, Sender: "ada@example.com",
		Content: "a direct word"})
	gone := w.say("general", "ada@example.com", "never mind")
	w.zulip.DeleteMessages(gone)
	w.say("welcome", "Newcomer1@example.com", "me again")
	return []string{name}
}

// service is one of the examples, at work, and started again whenever it ends, as systemd
// and Docker do.
type service struct {
	*harness.Journal
	name  string
	mu    sync.Mutex
	now   *exec.Cmd
	over  bool // it is not started again
	ended chan struct{}
	ends  int // how often it ended
}

// serve runs a command until the test ends.
func (w *world) serve(name string, environment []string, command string, args ...string) *service {
	w.t.Helper()
	s := &service{name: name, Journal: harness.NewJournal(w.t, name), ended: make(chan struct{})}
	start := func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.over {
			return os.ErrClosed
		}
		s.now = exec.Command(command, args...)
		s.now.Env = append(os.Environ(), environment...)
		s.now.Dir = w.dir
		s.now.Stdout, s.now.Stderr = s, s
		s.now.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		return s.now.Start()
	}
	harness.Must(w.t, start())
	go func() {
		defer close(s.ended)
		for {
			s.mu.Lock()
			now := s.now
			s.mu.Unlock()
			_ = now.Wait()
			s.mu.Lock()
			s.ends++
			s.mu.Unlock()
			time.Sleep(100 * time.Millisecond) // RestartSec of systemd
			if start() != nil {
				return
			}
		}
	}()
	w.t.Cleanup(func() {
		s.mu.Lock()
		s.over = true
		s.mu.Unlock()
		s.kill()
		<-s.ended
	})
	return s
}

// kill is kill -9, and waits until the service is there again.
func (s *service) kill() {
	s.mu.Lock()
	was, over := s.now, s.over
	_ = was.Process.Kill()
	s.mu.Unlock()
	harness.Within(harness.Patience, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return over || s.now != was
	})
}

// builds compiles the example in Go.
func (w *world) builds() string {
	w.t.Helper()
	out, err := exec.Command("go", "build", "-o", w.path("search"), "zulip-nats/examples/go").CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return w.path("search")
}

// script copies an example to where it finds its modules, with some of its text replaced,
// old and new by turns, and gives the copy's path.
func (w *world) script(name, folder string, replace ...string) string {
	w.t.Helper()
	text, err := os.ReadFile(name)
	harness.Must(w.t, err)
	for i := 0; i < len(replace); i += 2 {
		if strings.Count(string(text), replace[i]) != 1 {
			w.t.Fatalf("%s does not have %q, or more than once", name, replace[i])
		}
	}
	f, err := os.CreateTemp(folder, "*-"+filepath.Base(name)) // the folder is that of other tests, too
	harness.Must(w.t, err)
	harness.Must(w.t, f.Close())
	path := f.Name()
	harness.WriteFile(w.t, path, strings.NewReplacer(replace...).Replace(string(text)))
	w.t.Cleanup(func() { os.Remove(path) })
	return path
}

// greetings are how often the bot has greeted each person, by name, as Zulip has it.
func (w *world) greetings() map[string]int {
	all := map[string]int{}
	for _, m := range w.zulip.Messages() {
		if m.Sender == "greeter-bot@example.com" {
			_, name, _ := strings.Cut(m.Content, "@**")
			name, _, _ = strings.Cut(name, "|")
			all[name]++
		}
	}
	return all
}

// sorted is for people who compare.
func sorted(names []string) []string { return slices.Sorted(slices.Values(names)) }
