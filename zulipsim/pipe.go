package zulipsim

import (
	"context"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
)

// discard takes what net/http has to say about connections that faults cut on purpose.
var discard = log.New(io.Discard, "", 0)

// memnet is a network of one server: connections are pairs of net.Pipe. A pipe blocks on
// channels only, so a bubble of testing/synctest sees a waiting poll as idle and lets
// time pass.
type memnet struct {
	mu         sync.Mutex
	listener   *pipeListener
	stop       func()
	transports []*http.Transport
}

func (m *memnet) transport(h http.Handler) *http.Transport {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.listener == nil {
		m.listener = &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
		m.stop = serve(m.listener, h)
	}
	l := m.listener
	t := &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) },
		// Whatever scheme the URL has: TLS would prove nothing here.
		DialTLSContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return l.dial(ctx) },
	}
	m.transports = append(m.transports, t)
	return t
}

func (m *memnet) close() {
	m.mu.Lock()
	stop, transports := m.stop, m.transports
	m.listener, m.stop, m.transports = nil, nil, nil
	m.mu.Unlock()
	if stop == nil {
		return
	}
	stop()
	for _, t := range transports {
		t.CloseIdleConnections()
	}
}

// pipeListener hands the far ends of dialled pipes to an http.Server.
type pipeListener struct {
	conns  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (l *pipeListener) dial(ctx context.Context) (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case l.conns <- far:
		return near, nil
	case <-l.closed:
		return nil, &net.OpError{Op: "dial", Net: "pipe", Addr: pipeAddr{}, Err: net.ErrClosed}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "zulipsim" }
