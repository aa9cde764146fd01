//go:build linux

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"zulip-nats/stream/natstest"
)

// process is a program that is measured, or that one is compared with.
type process struct {
	t     *scope
	cmd   *exec.Cmd
	log   *natstest.Buffer
	began time.Time // right before it was started
	ended chan struct{}
}

// start starts a program. It is killed when the case ends.
func (t *scope) start(env []string, name string, args ...string) *process {
	p := &process{t: t, cmd: exec.Command(name, args...), log: new(natstest.Buffer), ended: make(chan struct{})}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ZULIP_") && !strings.HasPrefix(v, "NATS_") && !strings.HasPrefix(v, "XDG_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Env = append(append(p.cmd.Env, "HOME="+t.dir), env...) // where no zuliprc and no context is
	p.cmd.Stdout, p.cmd.Stderr = p.log, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // it ends with us, however we end
	p.began = time.Now()
	t.must(p.cmd.Start())
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	t.Cleanup(func() {
		if t.Failed() && t.ctx.Err() == nil {
			t.Logf("what %s wrote:\n%s", filepath.Base(name), p.log)
		}
		p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// follow starts zulip-nats as a user does.
func (t *scope) follow(z *zulip, natsURL, realm string, more ...string) *process {
	return t.start(nil, t.program, append([]string{"run", "--zuliprc", z.rc, "--nats-url", natsURL, "--realm", realm}, more...)...)
}

// finish waits until the process ends by itself, and says what it used.
func (p *process) finish() *syscall.Rusage {
	select {
	case <-p.ended:
	case <-p.t.ctx.Done():
		p.t.Fatal("interrupted")
	}
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		p.t.Fatalf("%s: %v", filepath.Base(p.cmd.Path), p.cmd.ProcessState)
	}
	return p.cmd.ProcessState.SysUsage().(*syscall.Rusage)
}

// end is SIGTERM, whatever that makes of it, and waits for the end.
func (p *process) end() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	<-p.ended
}

// processors is how long processors have worked for a process that has ended.
func processors(u *syscall.Rusage) time.Duration {
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
