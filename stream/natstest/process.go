//go:build unix

package natstest

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// configVariable names the configuration file for a test binary that is to be a
// nats-server.
const configVariable = "NATSTEST_SERVER_CONFIG"

// Main makes a test binary able to be a nats-server: call it first thing in TestMain of a
// package that uses [StartProcess].
func Main() {
	path := os.Getenv(configVariable)
	if path == "" {
		return
	}
	go func() {
		// The pipe closes when the test binary that started us dies, however it dies.
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	opts, err := server.ProcessConfigFile(path)
	if err == nil {
		var srv *server.Server
		if srv, err = server.NewServer(opts); err == nil {
			srv.ConfigureLogger()
			srv.Start()
			srv.WaitForShutdown()
			os.Exit(0)
		}
	}
	fmt.Fprintln(os.Stderr, "nats-server:", err)
	os.Exit(1)
}

// Parallel lets so many tests of a package run at a time, unless -parallel says otherwise:
// they wait more than they compute, so that may be more than there are processors. Call it
// in TestMain.
func Parallel(n int) {
	flag.Parse()
	chosen := false
	flag.Visit(func(f *flag.Flag) { chosen = chosen || f.Name == "test.parallel" })
	if !chosen {
		flag.Set("test.parallel", strconv.Itoa(n))
	}
}

// Process is a nats-server with JetStream in a process of its own.
type Process struct {
	// URL is the same after a restart.
	URL string
	// Name is the server's name.
	Name string

	t      testing.TB
	dir    string
	config string
	cmd    *exec.Cmd
	stdin  io.WriteCloser // open as long as the server may live
}

// StartProcess starts a server on a free port of 127.0.0.1 with an empty store, and kills
// it when the test ends. more is added to its configuration file.
func StartProcess(t testing.TB, more string) *Process {
	t.Helper()
	p := newProcess(t, "n1", FreePort(t), more)
	p.Start()
	return p
}

// StartProcesses starts a cluster of n servers, each in a process of its own, and waits
// until it has a leader.
func StartProcesses(t testing.TB, n int, more string) []*Process {
	t.Helper()
	ports := freePorts(t, 2*n)
	var routes []string
	for _, port := range ports[n:] {
		routes = append(routes, fmt.Sprintf("nats://127.0.0.1:%d", port))
	}
	var all []*Process
	for i := range n {
		cluster := fmt.Sprintf("cluster { name: natstest, listen: \"127.0.0.1:%d\", routes: [%s] }\n%s", ports[n+i],
			strings.Join(routes, ", "), more)
		p := newProcess(t, fmt.Sprintf("n%d", i+1), ports[i], cluster)
		p.Start()
		all = append(all, p)
	}
	js := all[0].JetStream()
	Eventually(t, "a leader of the cluster", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), unanswered)
		defer cancel()
		_, err := js.AccountInfo(ctx)
		return err == nil
	})
	return all
}

func newProcess(t testing.TB, name string, port int, more string) *Process {
	t.Helper()
	dir := t.TempDir()
	p := &Process{URL: fmt.Sprintf("nats://127.0.0.1:%d", port), Name: name, t: t, dir: dir}
	p.config = filepath.Join(dir, "nats-server.conf")
	// An authorization in more takes the place of this one.
	text := fmt.Sprintf("listen: \"127.0.0.1:%d\"\nserver_name: %s\njetstream { store_dir: %q }\nlog_file: "+
		"%q\nauthorization { timeout: %v }\n%s\n", port, name,
		filepath.Join(dir, "store"), p.LogFile(), patience.Seconds(), more)
	if err := os.WriteFile(p.config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Kill)
	return p
}

// LogFile is where the server writes its log.
func (p *Process) LogFile() string { return filepath.Join(p.dir, "nats-server.log") }

// StoreDir is where the server keeps its streams.
func (p *Process) StoreDir() string { return filepath.Join(p.dir, "store") }

// Start starts the server, again or for the first time, on the same port and store, and
// waits until it takes connections.
func (p *Process) Start() {
	p.t.Helper()
	binary, err := os.Executable()
	if err != nil {
		p.t.Fatal(err)
	}
	p.cmd = exec.Command(binary)
	p.cmd.Env = append(os.Environ(), configVariable+"="+p.config)
	p.cmd.Stderr = os.Stderr
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		p.t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	Eventually(p.t, "nats-server to take connections on "+p.URL, func() bool {
		c, err := net.DialTimeout("tcp", strings.TrimPrefix(p.URL, "nats://"), time.Second)
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(time.Second))
		line, _ := bufio.NewReader(c).ReadString('\n')
		return strings.HasPrefix(line, "INFO ")
	})
}

// Kill ends the server with SIGKILL, as a crash does. It may be called twice.
func (p *Process) Kill() { p.end(syscall.SIGKILL) }

// Stop ends the server with SIGTERM and waits for it.
func (p *Process) Stop() { p.end(syscall.SIGTERM) }

func (p *Process) end(signal syscall.Signal) {
	if p.cmd == nil || p.cmd.Process == nil {
		return
	}
	_ = p.cmd.Process.Signal(signal)
	_ = p.cmd.Process.Signal(syscall.SIGCONT) // a paused process does not hear SIGTERM
	_ = p.cmd.Wait()
	p.cmd = nil
}

// Pause stops the server's clock: it hangs, and its connections stay open.
func (p *Process) Pause() { Suspend(p.cmd.Process) }

// Resume lets a paused server go on.
func (p *Process) Resume() { _ = p.cmd.Process.Signal(syscall.SIGCONT) }

// Conn is a connection of the test's own, closed when the test ends.
func (p *Process) Conn(options ...nats.Option) *nats.Conn {
	p.t.Helper()
	return Connect(p.t, p.URL, options...)
}

// JetStream is a JetStream context of the test's own.
func (p *Process) JetStream(options ...nats.Option) jetstream.JetStream {
	p.t.Helper()
	return JetStream(p.t, p.Conn(options...))
}
