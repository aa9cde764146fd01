package zulipsim

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Fault makes something go wrong with requests. It can stand in the server's place
// (Status, Redirect, Empty, Reset, Hang without Answered), which then never sees the
// request, or spoil the server's own answer, after the request has had its effect.
type Fault struct {
	// Which requests.
	On      Kind                     // what they are for; zero or Any: all
	Account string                   // only those of this address; zero: all
	Match   func(*http.Request) bool // only those; nil: all
	Skip    int                      // after so many that match
	Times   int                      // so many; zero: until it is removed
	For     time.Duration            // so long from now; zero: until it is removed

	// What the client gets in place of an answer.
	Status      int // with Header and Body
	Header      http.Header
	Body        string
	ContentType string // zero: JSON if Body begins with a brace, else HTML
	Redirect    string // 302 to this URL
	Empty       bool   // 200 without a body
	// Reset resets the connection. Go's own client, on a connection that it used before,
	// then asks again by itself.
	Reset bool
	Hang  bool // no answer until the client gives up

	// Answered lets the server handle the request first, acknowledgements and all; what
	// stands above then replaces its answer: the answer was lost on the way.
	Answered bool

	// How an answer, the server's or Body, is spoiled on the way.
	Delay        time.Duration // it comes so much later
	HalfBody     bool          // its whole length is declared, half of it comes, then the connection ends
	LengthOff    int           // the declared length is wrong by so much, then the connection ends
	GzipCut      bool          // compressed, and the compressed data ends too early
	Trickle      int           // it comes so many bytes at a time
	TricklePause time.Duration // with this pause after each piece
}

// fault is a Fault at work.
type fault struct {
	Fault
	seen  int
	until time.Time
}

// Fault adds a fault; of several that match a request the newest is used. remove takes it
// away; it need not be called.
func (s *Server) Fault(f Fault) (remove func()) {
	ft := &fault{Fault: f}
	s.lock()
	defer s.mu.Unlock()
	if f.For > 0 {
		ft.until = time.Now().Add(f.For)
	}
	s.faults = append(s.faults, ft)
	return func() {
		s.lock()
		defer s.mu.Unlock()
		s.faults = slices.DeleteFunc(s.faults, func(o *fault) bool { return o == ft })
	}
}

// ClearFaults takes all faults away.
func (s *Server) ClearFaults() {
	s.lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// BadGateway is the 502 page that nginx shows while what is behind it does not run, for
// every request.
func BadGateway() Fault { return Fault{Status: http.StatusBadGateway, Body: page502} }

// ServerError is Zulip's own 500, on every poll: RabbitMQ is down. Queues are unharmed.
func ServerError() Fault {
	return Fault{On: Events, Status: http.StatusInternalServerError,
		Body: `{"result":"error","msg":"Internal server error"}` + "\n"}
}

// Unauthorized is a 401 on every request, with Zulip's text for a key that is not known.
func Unauthorized() Fault {
	return Fault{
		Status: http.StatusUnauthorized,
		Header: http.Header{"Www-Authenticate": {`Basic realm="zulip"`}},
		Body:   `{"result":"error","msg":"Invalid API key","code":"UNAUTHORIZED"}` + "\n",
	}
}

// TooMany is a 429 on every request that tells to wait for so many seconds, written as a
// decimal fraction: "5", "0.2464".
func TooMany(retryAfter string) Fault {
	return Fault{
		Status: http.StatusTooManyRequests,
		Header: http.Header{"Retry-After": {retryAfter}},
		Body:   `{"result":"error","msg":"API usage exceeded rate limit","code":"RATE_LIMIT_HIT","retry-after":` + retryAfter + "}\n",
	}
}

// faultFor returns the fault that takes a request, and counts it.
func (s *Server) faultFor(c *call) *fault {
	now := time.Now()
	for _, f := range slices.Backward(s.faults) {
		switch {
		case f.On != "" && f.On != Any && f.On != c.kind:
		case f.Account != "" && lower(f.Account) != lower(c.log.Account):
		case !f.until.IsZero() && !now.Before(f.until):
		case f.Match != nil && !f.Match(c.r):
		case f.Times > 0 && f.seen >= f.Skip+f.Times:
		default:
			f.seen++
			if f.seen <= f.Skip {
				continue
			}
			c.log.Fault = true
			if f.Status == http.StatusTooManyRequests {
				if sec, err := strconv.ParseFloat(f.Header.Get("Retry-After"), 64); err == nil {
					c.log.RetryAfter = time.Duration(sec * float64(time.Second))
					s.tell429(c, c.log.RetryAfter)
				}
			}
			return f
		}
	}
	return nil
}

// answerCopy takes an answer in place of the network.
type answerCopy struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (a *answerCopy) Header() http.Header         { return a.header }
func (a *answerCopy) WriteHeader(status int)      { a.status = status }
func (a *answerCopy) Write(b []byte) (int, error) { return a.body.Write(b) }

// serve does what the fault says with a request.
func (f *fault) serve(c *call) {
	replaces := f.Status != 0 || f.Redirect != "" || f.Empty || f.Reset || f.Hang
	got := &answerCopy{header: make(http.Header), status: http.StatusOK}
	if f.Answered || !replaces {
		w := c.w
		c.w = got
		c.serve()
		c.w = w
		if c.r.Context().Err() != nil {
			return
		}
		got.header.Del("Content-Length")
		if got.header.Get("Content-Encoding") == "gzip" { // the fault does the compressing
			if z, err := gzip.NewReader(&got.body); err == nil {
				plain, _ := io.ReadAll(z)
				got.body.Reset()
				got.body.Write(plain)
				got.header.Del("Content-Encoding")
			}
		}
	}
	sleep(c.r.Context(), f.Delay)
	switch {
	case f.Reset:
		reset(c.w)
		return
	case f.Hang:
		<-c.r.Context().Done()
		return
	case f.Redirect != "":
		got = &answerCopy{header: http.Header{"Location": {f.Redirect}}, status: http.StatusFound}
	case f.Empty:
		got = &answerCopy{header: make(http.Header), status: http.StatusOK}
	case f.Status != 0:
		kind := f.ContentType
		if kind == "" {
			kind = "text/html"
			if strings.HasPrefix(f.Body, "{") {
				kind = "application/json"
			}
		}
		got = &answerCopy{header: http.Header{"Content-Type": {kind}}, status: f.Status}
		maps.Copy(got.header, f.Header)
		got.body.WriteString(f.Body)
	}
	f.write(c, got)
}

// write sends an answer, spoiled.
func (f *fault) write(c *call, got *answerCopy) {
	body := got.body.Bytes()
	h := got.header
	if f.GzipCut {
		var z bytes.Buffer
		zw := gzip.NewWriter(&z)
		zw.Write(body)
		zw.Close()
		body = z.Bytes()[:max(z.Len()*2/3, 1)]
		h["Content-Encoding"] = []string{"gzip"}
	}
	if f.HalfBody || f.LengthOff != 0 {
		sent := body
		if f.HalfBody {
			sent = body[:len(body)/2]
		}
		if w, ok := c.w.(*watcher); ok {
			w.status = got.status
		}
		rawAnswer(c.w, got.status, h, len(body)+f.LengthOff, sent)
		return
	}
	maps.Copy(c.w.Header(), h)
	c.w.Header()["Content-Length"] = []string{strconv.Itoa(len(body))}
	sleep(c.r.Context(), c.s.RoundTrip/2)
	c.w.WriteHeader(got.status)
	if f.Trickle <= 0 {
		c.w.Write(body)
		return
	}
	flush := http.NewResponseController(c.w)
	for len(body) > 0 && c.r.Context().Err() == nil {
		n := min(f.Trickle, len(body))
		c.w.Write(body[:n])
		flush.Flush()
		body = body[n:]
		sleep(c.r.Context(), f.TricklePause)
	}
}

// rawAnswer writes an answer whose declared length may be wrong, and closes the
// connection.
func rawAnswer(w http.ResponseWriter, status int, h http.Header, length int, body []byte) {
	conn, buf, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	fmt.Fprintf(buf, "HTTP/1.1 %d %s\r\n", status, http.StatusText(status))
	h.Write(buf)
	fmt.Fprintf(buf, "Content-Length: %d\r\nConnection: close\r\n\r\n", length)
	buf.Write(body)
	buf.Flush()
}

// reset cuts the connection without an answer.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetLinger(0)
	}
	conn.Close()
}
