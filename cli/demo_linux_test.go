package cli

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// bridgesOf are the processes that a demo in this process, or in that one, has started,
// and that have not ended.
func bridgesOf(t *testing.T, parent int) (pids []int) {
	t.Helper()
	all, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range all {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		// One that ends meanwhile has no files any more.
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		if bytes.Contains(command, []byte("\x00"+demoBridgeName+"\x00")) &&
			regexp.MustCompile(fmt.Sprintf(`(?m)^PPid:\t%d$`, parent)).Match(status) {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids) // the folder has 1000 before 999
	return pids
}

// gone says that there is no process with that id.
func gone(pid int) bool { return syscall.Kill(pid, 0) == syscall.ESRCH }

// numbers are those in a text.
func numbers(text string) (all []int) {
	for _, s := range regexp.MustCompile(`\d+`).FindAllString(text, -1) {
		n, _ := strconv.Atoi(s)
		all = append(all, n)
	}
	return all
}

// TestDemoStory looks at the demo from outside: whether what it says it did was done, and
// whether the stream holds what the simulator sent, by a count of its own.
func TestDemoStory(t *testing.T) {
	begin(t)
	zulip := &zulipsim.Server{Tolerate: []zulipsim.Complaint{zulipsim.AckPruned}} // two bridges at once do that
	zulip.Complain(t, nil)
	port, dir := natstest.FreePort(t), t.TempDir()
	var killed, one, other int
	var lines []string // what was done, and what it cost
	out := watchedOutput{at: func(line string) error {
		if !strings.HasPrefix(line, "── ") || strings.Contains(line, "gap") || !strings.Contains(line, " ─") {
			return nil
		}
		text := strings.Trim(line, "─ \n")
		if _, err := time.Parse("Monday, 2 January 2006", text); err == nil {
			return nil
		}
		lines = append(lines, text)
		n := numbers(line)
		switch queues := zulip.Queues(); {
		case strings.Contains(line, "kill -9"):
			if killed = n[1]; !gone(killed) || len(bridgesOf(t, os.Getpid())) != 0 {
				t.Errorf("process %d is not gone, or there is another bridge", killed)
			}
		case strings.Contains(line, "NATS is stopped"):
			if c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
				c.Close()
				t.Error("somebody listens where NATS did")
			}
			if len(bridgesOf(t, os.Getpid())) != 1 {
				t.Error("there is not one bridge")
			}
		case strings.Contains(line, "forgotten"):
			if len(queues) != 1 || queues[0].Dead != "crash" || !strings.Contains(line, queues[0].ID[:8]) {
				t.Errorf("there are %d queues, the first is dead: %q", len(queues), queues[0].Dead)
			}
		case strings.Contains(line, "second bridge"):
			one, other = n[0], n[1]
			want := []int{one, other}
			slices.Sort(want)
			if got := bridgesOf(t, os.Getpid()); !slices.Equal(got, want) {
				t.Errorf("the bridges are %v, not %v", got, want)
			}
		}
		return nil
	}}
	var stderr watchedOutput
	err := tells(t, func(d *demoConfig) {
		d.beat, d.port, d.zulip, d.dir = 300*time.Millisecond, port, zulip, dir
		d.logLevel, d.logFormat = zerolog.InfoLevel, LogJSON
	}, &out, &stderr)
	if err != nil {
		t.Fatalf("%v\n%s%s", err, out.String(), stderr.String())
	}
	if left := bridgesOf(t, os.Getpid()); len(left) > 0 {
		t.Errorf("bridges run on: %v", left)
	}

	// What the bridges say of it: the killed one has no last word, and only Zulip's crash
	// was a loss.
	for event, want := range map[string]int{"stopped": 2, "gap_opened": 1, "gap_closed": 1} {
		if n := strings.Count(stderr.String(), fmt.Sprintf("%q:%q", logevent.Field, event)); n != want {
			t.Errorf("the bridges say %s %d times, not %d:\n%s", event, n, want, stderr.String())
		}
	}

	// Kill, cost, stop, cost, crash, cost, fight, cost.
	cost := `caught up after \d+\.\d s: (\d+) events? waited at Zulip; lost 0, twice 0`
	wants := []string{`kill -9 \d+`, cost, "NATS is stopped", cost, "Zulip crashes.*",
		`caught up after \d+\.\d s: (\d+) messages? read back; messages lost 0, twice 0`, "a second bridge.*",
		`after \d+\.\d s one is left: they stored \d+ events? and [1-9]\d*; lost 0, twice 0`}
	if len(lines) != len(wants) {
		t.Fatalf("%d lines tell of what was done: %q", len(lines), lines)
	}
	for i, want := range wants {
		if !regexp.MustCompile(want + "$").MatchString(lines[i]) {
			t.Errorf("the line %q is not like %q", lines[i], want)
		}
	}

	// The test's own count.
	stored := storedIn(t, dir)
	byName := map[string][]byte{}
	byMessage := map[int64]int{}
	writers := map[int]int{} // events, by process
	bridges := []int{killed, one, other}
	readBack := 0
	for _, m := range stored {
		h := m.Header
		if h.Get("Bridge-Record") == "skipped" {
			byName[h.Get("Zulip-Queue-Id")+" "+h.Get("Zulip-Event-Id")] = nil
		}
		if h.Get("Bridge-Record") != "" {
			continue
		}
		if id := h.Get("Zulip-Event-Id"); id != "" {
			name := h.Get("Zulip-Queue-Id") + " " + id
			if byName[name] != nil {
				t.Errorf("event %s is stored twice", name)
			}
			byName[name] = m.Data
		} else {
			readBack++
		}
		if id := h.Get("Zulip-Message-Id"); id != "" {
			byMessage[int64(numbers(id)[0])]++
		}
		by := -1
		for _, pid := range bridges {
			if strings.Contains(h.Get(events.HeaderWriter), fmt.Sprintf("-%d-", pid)) {
				by = pid
			}
		}
		writers[by]++
	}
	if len(writers) != 3 || writers[-1] > 0 {
		t.Errorf("the bridges %v stored, by process: %v", bridges, writers)
	}
	if n := numbers(lines[5]); n[len(n)-3] != readBack {
		t.Errorf("%d messages were read back, and told is %q", readBack, lines[5])
	}
	for id, n := range byMessage {
		if n != 1 {
			t.Errorf("message %d is stored %d times", id, n)
		}
	}
	sent := 0
	queued := map[int64]bool{}
	for _, q := range zulip.Queues() {
		for _, e := range q.Events {
			queued[e.MessageID] = true
			data, there := byName[fmt.Sprintf("%s %d", q.ID, e.ID)]
			switch {
			case there && data != nil && !bytes.Equal(data, e.Raw):
				t.Errorf("event %d of queue %s is stored with other bytes", e.ID, q.ID)
			case there:
				sent++
			case q.Dead != "" && e.Pruned.IsZero() && byMessage[e.MessageID] == 1:
				sent++
			case q.Dead != "" && e.Pruned.IsZero() && e.MessageID == 0: // no message, and no queue that has it
			default:
				t.Errorf("event %d of queue %s is not stored: %s", e.ID, q.ID, e.Raw)
			}
		}
	}
	for _, m := range zulip.Messages() {
		if queued[m.ID] {
			continue
		}
		if n := byMessage[m.ID]; n == 1 {
			sent++
		} else if m.Deleted.IsZero() {
			t.Errorf("message %d, which was in no queue, is stored %d times", m.ID, n)
		}
	}
	if n := allThere(t, out.String()); n != sent || sent == 0 {
		t.Errorf("%d were sent by the test's count, %d by the demo's", sent, n)
	}
	if queues := zulip.Queues(); len(queues) != 2 || queues[1].Dead != "" {
		t.Errorf("%d queues, of which the last is dead: %q", len(queues), queues[len(queues)-1].Dead)
	}
}

// A stop is clean and counts, wherever it comes: also what is said just before it.
func TestDemoStopped(t *testing.T) {
	begin(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for _, mark := range []string{"A simulated Zulip", "a queue is followed", "is killed", "NATS is stopped", "has forgotten",
		"second bridge", "one is left"} {
		d := demoDefaults()
		d.beat, d.zulip, d.patience = 50*time.Millisecond, &zulipsim.Server{}, 3*time.Minute
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		at := func(line string) error {
			if strings.Contains(line, mark) {
				d.zulip.SendMessage(zulipsim.Message{Channel: "ops", Topic: "the end", Content: "just before"})
				stop()
			}
			return nil
		}
		out, stderr := watchedOutput{at: at}, watchedOutput{at: at}
		if err := demo(ctx, &d, &out, &stderr); err != nil || ctx.Err() == nil {
			t.Errorf("stopped at %q: %v\n%s%s", mark, err, out.String(), stderr.String())
		}
		allThere(t, out.String())
		if left := bridgesOf(t, os.Getpid()); len(left) > 0 {
			t.Errorf("stopped at %q, bridges run on: %v", mark, left)
		}
		if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
			t.Errorf("stopped at %q, left behind: %v, %v", mark, left, err)
		}
	}
}

// Whoever reads it may go away: `demo | head`.
func TestDemoNobodyReads(t *testing.T) {
	begin(t)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	for _, mark := range []string{" > ", "is killed"} {
		gone := false
		out := watchedOutput{at: func(line string) error {
			if gone = gone || strings.Contains(line, mark); gone {
				return &os.PathError{Op: "write", Path: "|1", Err: syscall.EPIPE}
			}
			return nil
		}}
		var stderr watchedOutput
		if err := tells(t, func(d *demoConfig) { d.beat = 100 * time.Millisecond }, &out, &stderr); err != nil {
			t.Errorf("%v\n%s%s", err, out.String(), stderr.String())
		}
	}
	if left := bridgesOf(t, os.Getpid()); len(left) > 0 {
		t.Errorf("bridges run on: %v", left)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A bridge that ends and was not told to is no part of the story.
func TestDemoBridgeDies(t *testing.T) {
	begin(t)
	pid := 0
	out := watchedOutput{at: func(line string) error {
		if pids := bridgesOf(t, os.Getpid()); pid == 0 && strings.Contains(line, " > ") && len(pids) == 1 {
			pid = pids[0]
			return syscall.Kill(pid, syscall.SIGKILL)
		}
		return nil
	}}
	var stderr watchedOutput
	err := tells(t, func(d *demoConfig) { d.calm, d.beat = true, 100*time.Millisecond }, &out, &stderr)
	want := fmt.Sprintf("the demo broke off: the bridge, process %d, ended by itself (signal: killed)", pid)
	if err == nil || err.Error() != want {
		t.Errorf("it ends with %v, not %q", err, want)
	}
}

// What a bridge said before it ended by itself is told.
func TestDemoBridgeFails(t *testing.T) {
	begin(t)
	zulip := &zulipsim.Server{}
	zulip.Fault(zulipsim.Unauthorized())
	var out, stderr watchedOutput
	err := tells(t, func(d *demoConfig) { d.zulip = zulip }, &out, &stderr)
	if err == nil || !regexp.MustCompile(`(?s)^the demo broke off: the bridge, process \d+, ended by itself \(exit status 78\); `+
		`its last words:\n.*Invalid API key`).MatchString(err.Error()) {
		t.Errorf("it ends with %v", err)
	}
}

// A demo that is killed leaves no bridge behind.
func TestDemoKilled(t *testing.T) {
	begin(t)
	t.Setenv("TMPDIR", t.TempDir())
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out natstest.Buffer
	cmd := exec.Command(program, "demo", "--calm", "--beat", "100ms")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill() }()
	natstest.Eventually(t, "a message", func() bool { return strings.Contains(out.String(), " > ") })
	pids := bridgesOf(t, cmd.Process.Pid)
	if len(pids) != 1 {
		t.Fatalf("its bridges are %v", pids)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Whoever inherits it may leave it a zombie.
	natstest.Eventually(t, "the end of the bridge", func() bool {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pids[0]))
		return err != nil || bytes.Contains(stat, []byte(") Z "))
	})
	_ = cmd.Wait()
}

// On a terminal it is coloured, unless NO_COLOR is set, and no wider than 80 columns.
func TestDemoOnATerminal(t *testing.T) {
	begin(t)
	t.Setenv("TERM", "xterm")
	for _, c := range []struct {
		columns uint16
		noColor string
		most    int
	}{{200, "", 80}, {60, "1", 60}} {
		t.Setenv("NO_COLOR", c.noColor)
		tty, other := terminal(t, c.columns)
		var shown natstest.Buffer
		read := make(chan struct{})
		go func() {
			_, _ = io.Copy(&shown, other)
			close(read)
		}()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		code := make(chan int, 1)
		var stderr natstest.Buffer
		go func() { code <- Run(ctx, []string{"demo", "--calm", "--beat", "100ms"}, tty, &stderr) }()
		natstest.Eventually(t, "ten messages", func() bool { return strings.Count(shown.String(), " > ") >= 10 })
		stop()
		if n := <-code; n != 0 {
			t.Errorf("exit code %d: %s", n, stderr.String())
		}
		tty.Close()
		<-read
		if got := strings.Contains(shown.String(), "\x1b["); got == (c.noColor != "") {
			t.Errorf("NO_COLOR=%s: %q", c.noColor, shown.String())
		}
		longest := 0
		before, _, _ := strings.Cut(shown.String(), "\r\nsent by Zulip")
		for _, l := range strings.Split(before, "\r\n") {
			longest = max(longest, len([]rune(regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(l, ""))))
		}
		if longest > c.most || longest < c.most-20 {
			t.Errorf("the longest line has %d characters, of %d columns", longest, c.most)
		}
	}
}
