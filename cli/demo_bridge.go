package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	urfave "github.com/urfave/cli/v2"
)

// demoBridge is `run` as `demo` starts it, in a process that can be killed. It ends cleanly
// when its stdin does, and so also when the demo itself was killed; a signal that all
// processes of the demo were sent is for the demo to obey.
func (a *app) demoBridge() *urfave.Command {
	c := a.run()
	c.Name, c.Hidden, c.UsageText = demoBridgeName, true, "zulip-nats "+demoBridgeName
	c.Usage = "what demo starts, and kills"
	run := c.Action
	c.Action = func(u *urfave.Context) error {
		ctx, stop := context.WithCancel(context.WithoutCancel(u.Context))
		defer stop()
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop()
		}()
		u.Context = ctx
		return run(u)
	}
	return c
}

const demoBridgeName = "demo-bridge"

// child is a bridge in a process of its own.
type child struct {
	cmd   *exec.Cmd
	stdin io.Closer
	asked atomic.Bool // its end was asked for
	ended chan struct{}
}

// startChild starts one with these options of `run`. Its log goes to stderr, or if that is
// nil its end is kept. died is called if it ends and nobody asked for that.
func startChild(options []string, level zerolog.Level, format LogFormat, stderr io.Writer, died func(error)) (*child, error) {
	program, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("this program does not know where it is, so it cannot start the bridge: %w", err)
	}
	var log lastWords
	if stderr == nil {
		level, format, stderr = zerolog.ErrorLevel, LogConsole, &log
	}
	b := &child{ended: make(chan struct{})}
	b.cmd = exec.Command(program, append([]string{demoBridgeName, "--log-level", level.String(), "--log-format",
		string(format)}, options...)...)
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ZULIP_") && !strings.HasPrefix(v, "NATS_") && !strings.HasPrefix(v, "NOTIFY_SOCKET=") &&
			!strings.HasPrefix(v, "WATCHDOG_") {
			b.cmd.Env = append(b.cmd.Env, v)
		}
	}
	b.cmd.Stderr = stderr
	apart(b.cmd)
	if b.stdin, err = b.cmd.StdinPipe(); err == nil {
		err = b.cmd.Start()
	}
	if err != nil {
		return nil, fmt.Errorf("the bridge does not start as a process of its own: %w", err)
	}
	go func() {
		_ = b.cmd.Wait()
		close(b.ended)
		if !b.asked.Load() {
			died(fmt.Errorf("the bridge, process %d, ended by itself (%v)%s", b.pid(), b.cmd.ProcessState, log.said()))
		}
	}()
	return b, nil
}

func (b *child) pid() int { return b.cmd.Process.Pid }

// mark is a part of the name that the process has in the stream; see [writerName].
func (b *child) mark() string { return fmt.Sprintf("-%d-", b.pid()) }

// kill is kill -9, and waits for the end.
func (b *child) kill() {
	b.asked.Store(true)
	_ = b.cmd.Process.Kill()
	<-b.ended
}

// stop asks for a clean end, and waits for it.
func (b *child) stop() error {
	b.asked.Store(true)
	_ = b.stdin.Close()
	select {
	case <-b.ended:
	case <-time.After(demoPatience):
		b.kill()
		return fmt.Errorf("the bridge, process %d, did not end within %v, and was killed", b.pid(), demoPatience)
	}
	if !b.cmd.ProcessState.Success() {
		return errors.New("the end of the bridge was not clean: " + b.cmd.ProcessState.String())
	}
	return nil
}

// alive says whether it has not ended yet.
func (b *child) alive() bool {
	select {
	case <-b.ended:
		return false
	default:
		return true
	}
}

// lastWords keeps the end of a log.
type lastWords struct {
	mu   sync.Mutex
	text []byte
}

func (l *lastWords) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	const most = 2000
	if l.text = append(l.text, p...); len(l.text) > most {
		l.text = append([]byte(nil), l.text[len(l.text)-most:]...)
	}
	return len(p), nil
}

// said is the end of the log behind a colon; nothing if there is none.
func (l *lastWords) said() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := strings.TrimSpace(string(l.text))
	if text == "" {
		return ""
	}
	return "; its last words:\n" + text
}
