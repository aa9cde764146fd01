package stream

import (
	"net"
	"os"
	"sync"
	"time"
)

const (
	// shortWait is how long each step of connecting may take at a server that was not
	// slow before: the TCP handshake, the server's first word, its answers. A server that
	// hangs costs no more than that when there are others.
	shortWait = 2 * time.Second
	// longWait is how long each step may take at most, and how long a late answer is
	// listened for.
	longWait = 20 * time.Second
	// connectTimeout is for all steps together, TLS included.
	connectTimeout = time.Minute
	// slack is how much longer than what was measured is waited for: the first word takes
	// half a round trip where a proxy answers the TCP handshake, and the next step a
	// whole one.
	slack = 4
)

// dialer connects, and learns how slow the way to each server is. nats.go holds its lock
// while it connects, so a long time-out for all would block everybody for as long as a
// server hangs. Therefore a step is given up soon, and its late answer is listened for
// all the same: a server that says something after all is slow, and the next attempt
// waits longer for it; one that hangs says nothing.
type dialer struct {
	mu    sync.Mutex
	waits map[string]time.Duration // by address; absent is shortWait
	last  error                    // why the last attempt failed; nil if it did not
}

// reason is why the last attempt to reach a server failed: refused, no such host, too
// late. nats.go keeps that to itself when all servers refuse its first attempt.
func (d *dialer) reason() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

func (d *dialer) wait(address string) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return max(d.waits[address], shortWait)
}

// learn notes how long a step took.
func (d *dialer) learn(address string, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waits == nil {
		d.waits = make(map[string]time.Duration)
	}
	d.waits[address] = min(slack*took, longWait)
}

// Dial is what nats.go calls.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	conn, err := d.dial(network, address)
	d.mu.Lock()
	d.last = err
	d.mu.Unlock()
	return conn, err
}

func (d *dialer) dial(network, address string) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	limit, start := d.wait(address), time.Now()
	done := make(chan result, 1)
	go func() {
		conn, err := net.DialTimeout(network, address, longWait)
		done <- result{conn, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, r.err
		}
		return &newConn{Conn: r.conn, dialer: d, address: address}, nil
	case <-timer.C:
		go func() {
			if r := <-done; r.err == nil {
				d.learn(address, time.Since(start))
				r.conn.Close()
			}
		}()
		return nil, &net.OpError{Op: "dial", Net: network, Addr: hostPort(address), Err: os.ErrDeadlineExceeded}
	}
}

// hostPort is an address for an error.
type hostPort string

func (hostPort) Network() string  { return "tcp" }
func (a hostPort) String() string { return string(a) }

// newConn is a connection that is young. nats.go sets a deadline for as long as it is
// connecting, and none afterwards.
type newConn struct {
	net.Conn
	dialer  *dialer
	address string

	mu       sync.Mutex
	deadline time.Time // of connecting; zero when it is over
	asked    time.Time // when the step began whose answer did not come in time; zero if there is none
}

func (c *newConn) SetDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline = t
	c.mu.Unlock()
	return c.Conn.SetDeadline(t)
}

func (c *newConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	if deadline.IsZero() {
		return c.Conn.Read(p)
	}
	start := time.Now()
	if limit := start.Add(c.dialer.wait(c.address)); limit.Before(deadline) {
		deadline = limit
	}
	if err := c.Conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.dialer.learn(c.address, time.Since(start))
	} else if os.IsTimeout(err) {
		c.mu.Lock()
		c.asked = start
		c.mu.Unlock()
	}
	return n, err
}

// Close closes the connection; if an answer is due on it, when that has come or when it
// is too late for it.
func (c *newConn) Close() error {
	c.mu.Lock()
	asked := c.asked
	c.asked = time.Time{}
	c.mu.Unlock()
	if asked.IsZero() {
		return c.Conn.Close()
	}
	go func() {
		defer c.Conn.Close()
		if c.Conn.SetReadDeadline(asked.Add(longWait)) != nil {
			return
		}
		if n, _ := c.Conn.Read(make([]byte, 1)); n > 0 {
			c.dialer.learn(c.address, time.Since(asked))
		}
	}()
	return nil
}
