// Package natstest starts real nats-servers for tests: inside the test process, as
// processes of their own that can be killed, one or a cluster of three. It needs no
// nats-server on the machine, since the server is a library; a process of its own is the
// test binary, started again (see [Main]).
package natstest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// patience is how long a server may take to do what it should do; a slow machine needs
// it.
const patience = 2 * time.Minute

// unanswered is after what time to ask a cluster again: a server that sees no leader may
// say nothing.
const unanswered = 5 * time.Second

// Server is a nats-server with JetStream inside the test process.
type Server struct {
	// URL is the same after a restart.
	URL string

	t    testing.TB
	opts *server.Options
	srv  *server.Server
}

// Start starts a server on a free port of 127.0.0.1 with an empty store, and stops it
// when the test ends. configure may change anything before.
func Start(t testing.TB, configure ...func(*server.Options)) *Server {
	t.Helper()
	opts := &server.Options{
		Host: "127.0.0.1", Port: FreePort(t), JetStream: true, StoreDir: t.TempDir(), NoSigs: true, NoLog: true,
		// The server's own 2 s end the connection of a client that a busy machine lets wait.
		AuthTimeout: patience.Seconds(), TLSTimeout: patience.Seconds(),
	}
	for _, f := range configure {
		f(opts)
	}
	s := &Server{URL: fmt.Sprintf("nats://127.0.0.1:%d", opts.Port), t: t, opts: opts}
	s.start()
	t.Cleanup(s.Stop)
	return s
}

// start waits until it is ready. A server that complains at its start is ended, and
// another one is tried, for as long as a busy machine may need; the test's log has why.
func (s *Server) start() {
	s.t.Helper()
	for began := time.Now(); ; time.Sleep(100 * time.Millisecond) {
		srv, err := server.NewServer(s.opts.Clone())
		if err != nil {
			s.t.Fatalf("nats-server: %v", err)
		}
		s.srv = srv
		var said complaints
		srv.SetLogger(&said, false, false)
		srv.Start()
		for time.Since(began) < patience {
			if srv.ReadyForConnections(time.Second) {
				return
			}
			if said.String() != "" {
				break
			}
		}
		s.Stop()
		s.t.Logf("nats-server is not ready for connections: %s", said.String())
		if time.Since(began) >= patience {
			s.t.FailNow()
		}
	}
}

// complaints keeps what a server says that is an error.
type complaints struct{ Buffer }

func (c *complaints) add(format string, v ...any) { fmt.Fprintf(c, format+"\n", v...) }

func (c *complaints) Noticef(string, ...any)         {}
func (c *complaints) Debugf(string, ...any)          {}
func (c *complaints) Tracef(string, ...any)          {}
func (c *complaints) Warnf(string, ...any)           {}
func (c *complaints) Errorf(format string, v ...any) { c.add(format, v...) }
func (c *complaints) Fatalf(format string, v ...any) { c.add(format, v...) }

// Stop stops the server in good order and waits for it. It may be called twice.
func (s *Server) Stop() {
	s.srv.Shutdown()
	s.srv.WaitForShutdown()
}

// Restart stops the server, if it runs, and starts it again on the same port and store,
// after configure has changed its options.
func (s *Server) Restart(configure ...func(*server.Options)) {
	s.t.Helper()
	s.Stop()
	for _, f := range configure {
		f(s.opts)
	}
	s.start()
}

// Server is the running server itself.
func (s *Server) Server() *server.Server { return s.srv }

// StoreDir is where the server keeps its streams.
func (s *Server) StoreDir() string { return s.opts.StoreDir }

// Conn is a connection of the test's own, closed when the test ends.
func (s *Server) Conn(options ...nats.Option) *nats.Conn {
	s.t.Helper()
	return Connect(s.t, s.URL, options...)
}

// JetStream is a JetStream context of the test's own.
func (s *Server) JetStream(options ...nats.Option) jetstream.JetStream {
	s.t.Helper()
	return JetStream(s.t, s.Conn(options...))
}

// Connect is a connection of the test's own to any server, closed when the test ends. It
// waits for the server's greeting for as long as a busy machine may need.
func Connect(t testing.TB, url string, options ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{nats.MaxReconnects(-1), nats.Timeout(patience / 4),
		nats.ReconnectWait(50 * time.Millisecond)}, options...)...)
	if err != nil {
		t.Fatalf("connecting to %s: %v", url, err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// JetStream is a JetStream context of the test's own on any connection. It waits for an
// answer for as long as a busy machine may need, where the caller gives no deadline.
func JetStream(t testing.TB, nc *nats.Conn) jetstream.JetStream {
	t.Helper()
	js, err := jetstream.New(nc, jetstream.WithDefaultTimeout(patience/4))
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// Cluster is some nats-servers inside the test process that form a JetStream cluster.
type Cluster []*Server

// StartCluster starts a cluster of n servers and waits until it has a leader.
func StartCluster(t testing.TB, n int, configure ...func(*server.Options)) Cluster {
	t.Helper()
	ports := freePorts(t, n)
	var routes string
	for _, port := range ports {
		routes += fmt.Sprintf("nats://127.0.0.1:%d,", port)
	}
	routes = routes[:len(routes)-1]
	var c Cluster
	for i, port := range ports {
		c = append(c, Start(t, append([]func(*server.Options){func(o *server.Options) {
			o.ServerName = fmt.Sprintf("n%d", i+1)
			o.Cluster = server.ClusterOpts{Name: "natstest", Host: "127.0.0.1", Port: port}
			o.Routes = server.RoutesFromStr(routes)
		}}, configure...)...))
	}
	c.WaitForLeader()
	return c
}

// URL names all servers.
func (c Cluster) URL() string {
	urls := ""
	for _, s := range c {
		urls += s.URL + ","
	}
	return urls[:len(urls)-1]
}

// WaitForLeader waits until the cluster can answer requests about streams.
func (c Cluster) WaitForLeader() {
	c[0].t.Helper()
	Eventually(c[0].t, "a leader of the cluster", func() bool {
		leader, current := false, 0
		for _, s := range c {
			leader = leader || s.srv.JetStreamIsLeader()
			if s.srv.JetStreamIsCurrent() {
				current++
			}
		}
		return leader && current == len(c)
	})
}

// Leader returns the server that leads the cluster, waiting until there is one.
func (c Cluster) Leader() *Server {
	c[0].t.Helper()
	var leader *Server
	Eventually(c[0].t, "a leader of the cluster", func() bool {
		for _, s := range c {
			if s.srv.Running() && s.srv.JetStreamIsLeader() {
				leader = s
			}
		}
		return leader != nil
	})
	return leader
}

const stepDown = "$JS.API.STREAM.LEADER.STEPDOWN." // API subject

// StreamLeader returns the server that leads a stream of the global account, waiting
// until there is one.
func (c Cluster) StreamLeader(stream string) *Server {
	c[0].t.Helper()
	var leader *Server
	Eventually(c[0].t, "a leader of stream "+stream, func() bool {
		for _, s := range c {
			if s.srv.Running() && s.srv.JetStreamIsStreamLeader(server.DEFAULT_GLOBAL_ACCOUNT, stream) {
				leader = s
			}
		}
		return leader != nil
	})
	return leader
}

// MoveLeader makes a server the leader of a stream of the global account.
func (c Cluster) MoveLeader(stream string, to *Server) {
	c[0].t.Helper()
	nc := c[0].Conn()
	request := fmt.Appendf(nil, `{"placement":{"preferred":%q}}`, to.srv.Name())
	Eventually(c[0].t, "stream "+stream+" to be led by "+to.srv.Name(), func() bool {
		if c.StreamLeader(stream) == to {
			return true
		}
		_, _ = nc.Request(stepDown+stream, request, time.Second)
		return false
	})
}

// StepDown makes the leader of a stream of the global account give up its place. It asks
// until it is answered: a server that is just changing its leaders may say nothing.
func (c Cluster) StepDown(stream string) {
	c[0].t.Helper()
	nc := c[0].Conn()
	Eventually(c[0].t, "the leader of stream "+stream+" to step down", func() bool {
		_, err := nc.Request(stepDown+stream, nil, time.Second)
		return err == nil
	})
}

// passing are the errors of a creation that pass: cluster incomplete, no suitable peers,
// no leader, cannot handle the request, no store.
var passing = []jetstream.ErrorCode{10004, 10005, 10008, 10009, 10049}

// CreateStream makes a stream, waiting for what passes by itself: a cluster just started
// whose servers do not see each other yet, and the folder of a deleted stream, which
// while it goes away may keep the server from making another.
func CreateStream(t testing.TB, js jetstream.JetStream, config jetstream.StreamConfig) {
	t.Helper()
	Eventually(t, "stream "+config.Name+" to be created", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), unanswered)
		defer cancel()
		_, err := js.CreateStream(ctx, config)
		if e, ok := errors.AsType[*jetstream.APIError](err); ok && slices.Contains(passing, e.ErrorCode) ||
			errors.Is(err, context.DeadlineExceeded) {
			return false
		}
		if err != nil {
			t.Fatalf("creating stream %s: %v", config.Name, err)
		}
		return true
	})
}

// Eventually waits for a condition, for as long as a busy machine may need. The test ends
// here if it does not come about. Only for the test's own goroutine.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited %v for %s", patience, what)
		}
	}
}

func freePorts(t testing.TB, n int) []int {
	t.Helper()
	ports := make([]int, n)
	for i := range ports {
		ports[i] = FreePort(t)
	}
	return ports
}
