//go:build examples && unix

package examples

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/zulipsim"
)

// TestRecipes runs docs/consume.md from its beginning to its end, and compares what is
// shown there with what comes.
func TestRecipes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "../docs/consume.md")
	w.zulip.Heartbeat = func() time.Duration { return time.Hour }
	w.story()

	all := blocks(t, "../docs/consume.md")
	var frame, preamble string // what pieces in Python and for Node stand in
	ran := map[string]int{}
	for i, b := range all {
		ran[b.kind]++
		shown := ""
		if i+1 < len(all) && all[i+1].kind == "text" {
			shown = all[i+1].text
		}
		var got string
		switch b.kind {
		case "text", "conf": // what was shown, and what the server runs with
			continue
		case "console":
			got, shown = w.commands(b)
			// What is on its way to a stream that takes from others comes soon.
			if strings.Count(b.text, "$ ") == 1 {
				harness.Within(harness.Patience, func() bool {
					if !alike(got, shown) {
						got, _ = w.commands(b)
					}
					return alike(got, shown)
				})
			}
		case "python":
			if frame == "" {
				frame = b.text
				continue
			}
			indented := regexp.MustCompile(`(?m)^(.)`).ReplaceAllString(strings.TrimSpace(b.text), "    $1")
			path := w.path(fmt.Sprintf("recipe%d.py", b.line))
			harness.WriteFile(t, path, strings.Replace(frame, "    ...", indented, 1))
			got = w.runs(b, *python, path)
		case "js":
			if preamble == "" {
				preamble = b.text
				continue
			}
			path := filepath.Join(*node, fmt.Sprintf("%d-recipe%d.mjs", os.Getpid(), b.line))
			harness.WriteFile(t, path, preamble+b.text)
			got = w.runs(b, "node", path)
			harness.Must(t, os.Remove(path))
		case "go":
			source, err := os.ReadFile("consume_test.go")
			harness.Must(t, err)
			if !strings.Contains(string(source), b.text) {
				t.Errorf("docs/consume.md:%d is not in consume_test.go", b.line)
			}
			got = w.replays()
		default:
			t.Errorf("docs/consume.md:%d: nobody runs %s", b.line, b.kind)
		}
		if !alike(got, shown) {
			t.Errorf("docs/consume.md:%d: it printed\n%s\nand the page says\n%s", b.line, got, shown)
		}
	}
	t.Logf("run: %v", ran)
}

// alike compares what came with what is shown, in which … stands for anything.
func alike(got, shown string) bool {
	pattern := strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(shown)), "…", "(?s:.*)")
	return regexp.MustCompile(`\A` + pattern + `\z`).MatchString(trimmed(got))
}

// trimmed is text without blanks at the ends of lines.
func trimmed(text string) string {
	return strings.TrimSpace(regexp.MustCompile(`(?m)[ \t]+$`).ReplaceAllString(text, ""))
}

// commands runs those of a console, and gives what they print and what is shown below
// them.
func (w *world) commands(b block) (got, shown string) {
	w.t.Helper()
	script := "shopt -s expand_aliases\n"
	for line := range strings.Lines(b.text) {
		if command, is := strings.CutPrefix(line, "$ "); is {
			// The page has the command; so has what came, to tell what printed what.
			script += "echo '$' " + quoted(strings.TrimSpace(command)) + "\n" + command
		}
	}
	return w.runs(b, "bash", "-c", script), b.text
}

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// runs runs a program as a reader of the page would, and gives what it prints.
func (w *world) runs(b block, name string, args ...string) string {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(w.t.Context(), harness.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = w.dir
	cmd.Env = append(os.Environ(), "NATS_URL="+w.nats.URL, "HOME="+w.dir, "NO_COLOR=1", "TZ=UTC",
		"PATH="+w.path("bin")+":"+os.Getenv("PATH"),
		"OPERATOR_PASSWORD="+password("operator"), "TRIAGE_PASSWORD="+password("triage"))
	out, err := cmd.CombinedOutput()
	if err != nil && name != "bash" {
		w.t.Errorf("docs/consume.md:%d: %v\n%s", b.line, err, out)
	}
	return string(out)
}

// replay is the piece in Go.
func replay(ctx context.Context, js jetstream.JetStream, out io.Writer, since time.Time, until uint64) error {
	consumer, err := js.OrderedConsumer(ctx, "ZULIP_acme", jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{"zulip.acme.message"},
		DeliverPolicy:  jetstream.DeliverByStartTimePolicy,
		OptStartTime:   &since,
	})
	if err != nil {
		return err
	}
	reader := events.Reader{Consumer: consumer, JetStream: js} // fetches large events
	for event, err := range reader.All(ctx) {
		if err != nil {
			return err
		}
		fmt.Fprintln(out, event.Seq, event.Origin, len(event.Raw), "bytes")
		if event.Seq >= until {
			return nil
		}
	}
	return ctx.Err()
}

// story is what has happened at acme, as docs/consume.md tells it.
func (w *world) story() {
	w.t.Helper()
	harness.Must(w.t, os.Mkdir(w.path("bin"), 0o700))
	harness.Must(w.t, os.Symlink(harness.Program(), w.path("bin/zulip-nats")))
	harness.Must(w.t, os.Symlink(*natsCLI, w.path("bin/nats")))
	w.zulip.Person("ada@example.com", "Ada Lovelace")
	w.zulip.Person("grace@example.com", "Grace Hopper")
	say := func(sender, text string) int64 {
		return w.zulip.SendMessage(zulipsim.Message{Channel: "ops", Topic: "release", Sender: sender, Content: text})
	}
	w.start()
	first := say("ada@example.com", "Shall we?")
	w.zulip.React(first, "grace@example.com", "tada")
	text := "Shall we release?"
	w.zulip.EditMessage(first, zulipsim.Edit{Content: &text})
	w.zulip.Typing("ada@example.com", "start", "ops", "release")
	say("grace@example.com", strings.Repeat("All the notes. ", 80_000))
	w.settle()
	w.bridge.Kill()
	say("grace@example.com", "It is done.")
	w.zulip.ExpireAll()
	w.start()
	w.settle()
	say("ada@example.com", "Thank you!")
	w.settle()

	// Another organization, with a bridge of its own.
	school := &zulipsim.Server{Heartbeat: w.zulip.Heartbeat}
	bot := school.Account("bridge-bot@example.com")
	harness.WriteZuliprc(w.t, w.path("school"), bot.Email, bot.Key, school.Start(w.t))
	p, err := harness.Start(w.journal, "run", "--zuliprc", w.path("school"), "--nats-url", w.nats.URL, "--realm",
		"school", "--no-lease")
	harness.Must(w.t, err)
	w.t.Cleanup(p.Kill)
	harness.EventuallyQueue(w.t, "a poll that waits", school.Queues, func(q zulipsim.QueueInfo) bool { return q.Waiting })
	school.SendMessage(zulipsim.Message{Channel: "lessons", Content: "Good morning."})
	harness.EventuallyQueue(w.t, "an empty queue", school.Queues,
		func(q zulipsim.QueueInfo) bool { return q.Waiting && q.Pending == 0 })
}

// replays runs the piece in Go.
func (w *world) replays() string {
	w.t.Helper()
	s, err := w.js.Stream(w.t.Context(), "ZULIP_acme")
	harness.Must(w.t, err)
	newest, err := s.GetLastMsgForSubject(w.t.Context(), "zulip.acme.message")
	harness.Must(w.t, err)
	ctx, cancel := context.WithTimeout(w.t.Context(), harness.Patience)
	defer cancel()
	var printed strings.Builder
	harness.Must(w.t, replay(ctx, w.js, &printed, time.Now().Add(-24*time.Hour), newest.Sequence))
	return printed.String()
}
