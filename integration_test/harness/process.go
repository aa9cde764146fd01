//go:build unix

package harness

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"zulip-nats/stream/natstest"
)

// Process is the program at work. What it writes is in its journal, after what programs
// before it wrote there.
type Process struct {
	*Journal
	cmd    *exec.Cmd
	before int // size of the journal before it was started
	ended  chan struct{}
}

// Start starts the program with these arguments and an environment in which nothing of
// ours is set. It runs until it is told to end.
func Start(j *Journal, args ...string) (*Process, error) {
	return StartAs(j, func(*exec.Cmd) {}, args...)
}

// StartAs is Start of a command that may be changed before.
func StartAs(j *Journal, change func(*exec.Cmd), args ...string) (*Process, error) {
	p := &Process{Journal: j, cmd: exec.Command(program, args...), before: j.size(), ended: make(chan struct{})}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "ZULIP_") && !strings.HasPrefix(v, "NATS_") && !strings.HasPrefix(v, "XDG_") {
			p.cmd.Env = append(p.cmd.Env, v)
		}
	}
	p.cmd.Env = append(p.cmd.Env, "HOME=/nonexistent") // where no zuliprc is
	p.cmd.Stdout, p.cmd.Stderr = j, j
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C in a terminal is for the test
	change(p.cmd)
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// PID is part of the writer's name in the stream.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Wrote says whether a message's Bridge-Writer is this process: <host>-<pid>-<some
// letters>.
func (p *Process) Wrote(writer string) bool {
	return strings.Contains(writer, fmt.Sprintf("-%d-", p.PID()))
}

// Alive says whether it has not ended yet.
func (p *Process) Alive() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// Kill is kill -9, and waits for the end. It may be called twice.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	<-p.ended
}

// Signal fails only where the process is gone, which shows by itself.
func (p *Process) Signal(s syscall.Signal) { _ = p.cmd.Process.Signal(s) }

// Pause is SIGSTOP: no instruction is carried out until Resume.
func (p *Process) Pause() { natstest.Suspend(p.cmd.Process) }

// Resume is SIGCONT.
func (p *Process) Resume() { p.Signal(syscall.SIGCONT) }

// Stop is SIGTERM, and says how long the end took, and an error if it was not a clean
// one. Before its first line the program may not have got to handling signals yet; then
// it just ends.
func (p *Process) Stop() (took time.Duration, err error) {
	silent := p.size() == p.before
	began := time.Now()
	p.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(Patience):
		return 0, fmt.Errorf("the program runs on %v after SIGTERM", Patience)
	}
	took = time.Since(began)
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.ExitStatus() == 0 || silent && status.Signaled() && status.Signal() == syscall.SIGTERM {
		return took, nil
	}
	return took, fmt.Errorf("%v after SIGTERM", p.cmd.ProcessState)
}

// ExitCode waits until the program ends by itself, and gives its exit code.
func (p *Process) ExitCode() int {
	p.t.Helper()
	Eventually(p.t, "the program to end", func() bool { return !p.Alive() })
	return p.cmd.ProcessState.ExitCode()
}
