package poller

// Reading the body of a response with timeouts and cancellation, for answer.

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// pump reads a body in a goroutine of its own, since a read cannot be given up and taken
// up again otherwise. It reads when asked to, into the place that it is given, so nothing
// is copied.
type pump struct {
	ask     chan []byte
	got     chan read
	body    io.ReadCloser
	reading bool // a read is under way
}

type read struct {
	n   int
	err error
}

var (
	errSilent      = errors.New("silent")
	errLinger      = errors.New("lingered")
	errInterrupted = errors.New("interrupted")
)

// unpackers are gzip readers that nobody uses: one has 40 kB, far more than most answers.
var unpackers sync.Pool

func startPump(body io.ReadCloser, gzipped bool) *pump {
	p := &pump{ask: make(chan []byte), got: make(chan read, 1), body: body}
	go func() {
		defer close(p.got)
		r := io.Reader(body)
		defer func() {
			if z, ok := r.(*gzip.Reader); ok {
				unpackers.Put(z)
			}
		}()
		for into := range p.ask {
			if gzipped {
				// The head is read here and not before, since it may be as slow as the
				// rest.
				z, _ := unpackers.Get().(*gzip.Reader)
				if z == nil {
					z = new(gzip.Reader)
				}
				r, gzipped = z, false
				if err := z.Reset(body); err != nil {
					p.got <- read{0, unexpected(err)}
					return
				}
			}
			n, err := r.Read(into)
			p.got <- read{n, err}
			if err != nil {
				return
			}
		}
	}()
	return p
}

// unexpected makes an end where gzip's head was due what it is.
func unexpected(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

// read reads into b, or goes on waiting for the read that is under way. errSilent and
// errLinger say that one of the timers was first, errInterrupted that ctx has ended; the
// read is still under way then.
func (p *pump) read(ctx context.Context, b []byte, silence, linger <-chan time.Time) (int, error) {
	if !p.reading {
		p.reading = true
		p.ask <- b
	}
	select {
	case r := <-p.got:
		p.reading = false
		return r.n, r.err
	case <-linger:
		return 0, errLinger
	case <-silence:
		return 0, errSilent
	case <-ctx.Done():
		return 0, errInterrupted
	}
}

// stop waits for the goroutine, whose read must have been made to fail or be at its end,
// and closes the body.
func (p *pump) stop() {
	close(p.ask)
	for range p.got {
	}
	p.body.Close()
}
