package natstest

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Proxy stands between clients and a server and knows a publish when it sees one, so that
// a test can do something between two messages of one burst, or lose exactly one.
type Proxy struct {
	// URL is where clients connect.
	URL string

	t        testing.TB
	target   string
	listener net.Listener

	mu        sync.Mutex
	onPublish func(Publish) Fate
	onDeliver func(Publish) Fate
	delay     time.Duration
	heldUntil time.Time
	links     map[*link]bool
	closed    bool
	running   sync.WaitGroup
}

// link is one client's connection.
type link struct {
	client, server net.Conn
	lost           bool // the client is gone, and the server was not told
}

func (l *link) close() {
	l.client.Close()
	l.server.Close()
}

// Publish is one message on its way from a client to the server, or back.
type Publish struct {
	Subject, Reply string
	// Payload has the headers and the data.
	Payload []byte
}

// Fate is what becomes of a publish.
type Fate int

const (
	// Pass lets it through.
	Pass Fate = iota
	// Lose drops it, and nobody is told.
	Lose
	// Cut closes the connection instead.
	Cut
	// PassAndCut closes the connection and lets it through all the same: the answer finds
	// nobody.
	PassAndCut
)

// NewProxy starts a proxy for the server at target (a nats:// URL), which ends with the
// test.
func NewProxy(t testing.TB, target string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		URL: "nats://" + l.Addr().String(), t: t, target: strings.TrimPrefix(target, "nats://"), listener: l,
		links: make(map[*link]bool),
	}
	p.running.Go(p.accept)
	t.Cleanup(func() {
		p.mu.Lock()
		p.closed = true
		p.mu.Unlock()
		l.Close()
		p.CutAll()
		p.running.Wait()
	})
	return p
}

// OnPublish sets what is asked before each publish is passed on; nil passes all. It is
// called in the order of a connection's publishes, and what it does is done before the
// server sees the message.
func (p *Proxy) OnPublish(f func(Publish) Fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onPublish = f
}

// OnDeliver sets what is asked before each message is passed on from the server to a
// client; nil passes all.
func (p *Proxy) OnDeliver(f func(Publish) Fate) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onDeliver = f
}

// Delay makes each way last that much longer.
func (p *Proxy) Delay(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

// Hold keeps back everything that the server says, on all connections, for so long from
// now. What clients send goes in all the same: a server that has done what it was asked
// for, and hangs before it answers. Called by what [Proxy.OnPublish] asks, it keeps the
// answer to just that publish.
func (p *Proxy) Hold(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heldUntil = time.Now().Add(d)
}

// awaitHold waits until nothing is held.
func (p *Proxy) awaitHold() {
	for {
		p.mu.Lock()
		left := time.Until(p.heldUntil)
		p.mu.Unlock()
		if left <= 0 {
			return
		}
		time.Sleep(left)
	}
}

// CutAll closes all connections. What a server has not read by then it may never read: an
// answer that it writes meets a closed port, and the system drops the rest.
func (p *Proxy) CutAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.close()
	}
}

// LoseClients closes the clients' connections, and the server is not told, as where a
// network fails in between: it reads all that is on its way.
func (p *Proxy) LoseClients() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		l.lost = true
		l.client.Close()
	}
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{client: client, server: server}
		p.mu.Lock()
		p.links[l] = true
		closed := p.closed
		p.mu.Unlock()
		if closed {
			l.close()
			continue
		}
		p.running.Go(func() {
			p.relay(client, server, client, []string{"PUB", "HPUB"})
			p.mu.Lock()
			lost := l.lost
			p.mu.Unlock()
			if !lost {
				l.close()
			}
		})
		p.running.Go(func() {
			p.relay(server, client, client, []string{"MSG", "HMSG"})
			l.close()
			p.mu.Lock()
			delete(p.links, l)
			p.mu.Unlock()
		})
	}
}

func (p *Proxy) settings() (onPublish, onDeliver func(Publish) Fate, delay time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.onPublish, p.onDeliver, p.delay
}

// delayed writes to w what is sent to it, each piece so much later and not before ready
// returns; order is kept, and pieces travel together.
func (p *Proxy) delayed(w io.Writer, ready func()) (send func([]byte), stop func()) {
	type piece struct {
		due  time.Time
		data []byte
	}
	pieces := make(chan piece, 1<<16)
	var writing sync.WaitGroup
	writing.Go(func() {
		for piece := range pieces {
			time.Sleep(time.Until(piece.due))
			ready()
			if _, err := w.Write(piece.data); err != nil {
				for range pieces {
				}
			}
		}
	})
	send = func(data []byte) {
		_, _, delay := p.settings()
		pieces <- piece{time.Now().Add(delay), bytes.Clone(data)}
	}
	return send, func() { close(pieces); writing.Wait() }
}

// relay passes lines on: only messages, named by verbs, are followed by a payload.
//
//	PUB <subject> [reply] <size>         MSG <subject> <sid> [reply] <size>
//	HPUB <subject> [reply] <headers> <size>     HMSG <subject> <sid> [reply] <headers> <size>
func (p *Proxy) relay(from, to, client net.Conn, verbs []string) {
	ready := func() {}
	if to == client {
		ready = p.awaitHold
	}
	send, stop := p.delayed(to, ready)
	defer stop()
	r := bufio.NewReaderSize(from, 64<<10)
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		fields := strings.Fields(line)
		if len(fields) < 3 || !slices.Contains(verbs, fields[0]) {
			send([]byte(line))
			continue
		}
		size, err := strconv.Atoi(fields[len(fields)-1])
		if err != nil {
			p.t.Errorf("proxy: %q: %v", line, errors.Unwrap(err))
			return
		}
		payload := make([]byte, size+2)
		if _, err := io.ReadFull(r, payload); err != nil {
			return
		}
		message := Publish{Subject: fields[1], Payload: payload[:size]}
		numbers := 1
		if fields[0][0] == 'H' {
			numbers = 2
		}
		hook, onDeliver, _ := p.settings()
		rest := fields[2 : len(fields)-numbers]
		if fields[0] == "MSG" || fields[0] == "HMSG" {
			hook, rest = onDeliver, rest[1:]
		}
		if len(rest) == 1 {
			message.Reply = rest[0]
		}
		fate := Pass
		if hook != nil {
			fate = hook(message)
		}
		switch fate {
		case Lose:
			continue
		case Cut:
			return
		case PassAndCut:
			client.Close()
		}
		send(append([]byte(line), payload...))
		if fate == PassAndCut {
			return
		}
	}
}
