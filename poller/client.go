package poller

import (
	"cmp"
	"compress/gzip"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"zulip-nats/health"
	"zulip-nats/redact"
)

// Client speaks Zulip's HTTP API: one request for each call, no retries, no waiting for a
// rate limit. It is for one goroutine.
type Client struct {
	// Account gives the account. It is called before the first request and again whenever
	// Zulip refuses the key, so a function that reads the zuliprc lets a rotated key heal
	// without a restart.
	Account func() (Account, error)
	// Transport carries the requests. Nil: one that accounts of the same TLS settings
	// share.
	Transport http.RoundTripper
	// UserAgent names us to Zulip, which keeps the part before the slash as the client's
	// name: "zulip-nats/1.2.3". It must not contain "mirror": such clients are sent other
	// events. Empty: "zulip-nats".
	UserAgent string
	// Seen is shown the head of each response: what it says of time, limits and TLS. It
	// must not touch the body. Nil: nobody looks.
	Seen func(*http.Response)
	// MaxBatch is how many events a batch has at most; 0: 1,000.
	MaxBatch int
	// maxEvent is the size up to which an event is kept whole, in bytes; 0: maxEvent,
	// at least 8 KiB.
	maxEvent int

	account   atomic.Pointer[Account] // requests are made with it; nil before the first
	stale     atomic.Bool             // it is to be read again before the next request
	transport http.RoundTripper
	answered  bool // somebody is there
	words     interned
}

const (
	// answerTimeout is for everything but polls. Register takes 6 s to fail while Tornado
	// is down.
	answerTimeout = 60 * time.Second
	mostError     = 64 << 10 // read of the body of an error
	mostAnswer    = 32 << 20 // read of an answer; 14 kB are usual, of register
	// mostState is read of the answer to a register that asks for state. At a Zulip 10.2 a
	// user had some 700 bytes there, a channel a kilobyte.
	mostState = 256 << 20
)

// shown is the site as it stands in messages: scheme, host and port.
func (a *Account) shown() string { return redact.URL(a.Site) }

// reload reads the account again and reports whether e-mail or key are others than
// before. An account on another site is an error: a bridge does not change its
// organization under way.
func (c *Client) reload() (changed bool, err error) {
	a, err := c.Account()
	if err != nil {
		return false, err
	}
	was := c.account.Load()
	if was == nil {
		c.account.Store(&a)
		return true, nil
	}
	if a.Site != was.Site {
		return false, configErrorf("the zuliprc names another site now, %s instead of %s; restart to follow it",
			a.shown(), was.shown())
	}
	c.account.Store(&a)
	return !a.signsAs(was), nil
}

// signsAs says whether requests of both have the same e-mail and key.
func (a *Account) signsAs(b *Account) bool { return a.Email == b.Email && a.Key == b.Key }

// Refresh says that e-mail and key may have changed, and whether those of now are others
// than requests are signed with: the account is read again before the next one. One that
// cannot be read, or is of another site, changes nothing then. Any goroutine may call it.
func (c *Client) Refresh(now Account) (changed bool) {
	c.stale.Store(true)
	was := c.account.Load()
	return was != nil && !now.signsAs(was)
}

// start sees to it that there are an account and a transport.
func (c *Client) start() error {
	switch {
	case c.account.Load() == nil:
		if _, err := c.reload(); err != nil {
			return err
		}
	case c.stale.Swap(false):
		_, _ = c.reload() // who asked for it has looked at the account, and tells what is wrong
	}
	if c.transport == nil {
		c.transport = c.Transport
		if c.transport == nil {
			t, err := sharedTransport(*c.account.Load())
			if err != nil {
				return err
			}
			c.transport = t
		}
	}
	return nil
}

// closeIdle closes connections that no request uses. Those of a transport that others use
// too stay, for them, and end after 90 s.
func (c *Client) closeIdle() {
	if t, ok := c.Transport.(interface{ CloseIdleConnections() }); ok {
		t.CloseIdleConnections()
	}
}

// register makes a queue; channels asks which channels the account has, too, and state for
// the state of these sections. Errors: *RefusedError, *AuthError, *ConfigError (no
// account), the context's, or one that may heal.
func (c *Client) register(ctx context.Context, o Options, channels bool, state []Section) (*Registration, error) {
	r := new(registered)
	out, most := any(r), int64(mostAnswer)
	if len(state) > 0 {
		out, most = &withState{r}, mostState
	}
	if err := c.callFor(ctx, "POST", "register", o.register(channels, state), most, out); err != nil {
		return nil, err
	}
	return o.registration(r, state)
}

// deleteQueue deletes a queue. Errors as of register.
func (c *Client) deleteQueue(ctx context.Context, queue string) error {
	return c.call(ctx, "DELETE", "events", url.Values{"queue_id": {queue}}, new(struct{}))
}

// events polls: everything up to at is acknowledged, and the answer holds what comes
// behind it, as soon as there is something; with dontBlock at once, perhaps nothing.
// patience bounds each silence, that before the answer too. Errors as of register. The
// answer must be closed.
func (c *Client) events(ctx context.Context, at Position, dontBlock bool, patience time.Duration) (*answer, error) {
	query := url.Values{"queue_id": {at.Queue}, "last_event_id": {strconv.FormatInt(at.Last, 10)}}
	if dontBlock {
		query.Set("dont_block", "true")
	}
	a, err := c.open(ctx, "events", query, patience)
	if err != nil {
		return nil, err
	}
	a.at, a.last = at, at.Last
	return a, nil
}

// open asks for an answer that is read as a stream.
func (c *Client) open(ctx context.Context, path string, query url.Values, patience time.Duration) (*answer, error) {
	health.Waits(ctx, patience)
	// The answer outlives this call and may outlive ctx, which stands for one call of the
	// Poller.
	mine, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer context.AfterFunc(ctx, func() { cancel(ctx.Err()) })()
	timer := time.AfterFunc(patience, func() { cancel(errSilent) })
	defer timer.Stop()
	sent := time.Now()
	resp, err := c.send(mine, "GET", path, query)
	asked := "GET /api/v1/" + path
	if err != nil {
		cancel(nil)
		switch {
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case context.Cause(mine) == errSilent:
			return nil, &transientError{text: fmt.Sprintf("Zulip did not answer %s for %v", asked, patience)}
		}
		return nil, err
	}
	a := newAnswer(resp.Body, resp.Header.Get("Content-Encoding") == "gzip", cancel)
	a.sent, a.asked, a.patience = sent, asked, patience
	a.came = time.Now()
	a.rate = readRate(resp.Header, a.came)
	a.limit = max(c.maxEvent, 8<<10)
	if c.maxEvent == 0 {
		a.limit = maxEvent
	}
	a.most = cmp.Or(c.MaxBatch, maxBatch)
	a.scan.words = &c.words
	a.scrub = c.scrub
	return a, nil
}

// call makes a request whose answer is small, and decodes it into out.
func (c *Client) call(ctx context.Context, method, path string, form url.Values, out any) error {
	return c.callFor(ctx, method, path, form, mostAnswer, out)
}

// callFor is call for an answer of at most so many bytes.
func (c *Client) callFor(ctx context.Context, method, path string, form url.Values, most int64, out any) error {
	health.Waits(ctx, answerTimeout)
	mine, cancel := context.WithTimeoutCause(ctx, answerTimeout, errSilent)
	defer cancel()
	asked := method + " /api/v1/" + path
	resp, err := c.send(mine, method, path, form)
	var body []byte
	if err == nil {
		defer resp.Body.Close()
		body, err = readBody(resp, most)
		if err != nil {
			err = &transientError{text: fmt.Sprintf("Zulip's answer to %s cannot be read: %v", asked, err)}
		}
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ctx.Err()
	case context.Cause(mine) == errSilent:
		return &transientError{text: fmt.Sprintf("Zulip did not answer %s for %v", asked, answerTimeout)}
	default:
		return err
	}
	var status struct{ Result, Msg string }
	switch err := json.Unmarshal(body, &status); {
	case err != nil:
		return &transientError{text: fmt.Sprintf("Zulip answers 200 (%s) to %s", kindOf(resp.Header, body), asked)}
	case status.Result != "success":
		return &transientError{text: fmt.Sprintf("Zulip answers %s to %s, status 200: %s", quote(status.Result), asked,
			quote(c.scrub(status.Msg)))}
	}
	if err := json.Unmarshal(body, out); err != nil {
		return &transientError{text: fmt.Sprintf("Zulip's answer to %s cannot be understood: %v", asked, err)}
	}
	return nil
}

// send makes one request. The response is a 200; all else is an error.
func (c *Client) send(ctx context.Context, method, path string, form url.Values) (*http.Response, error) {
	if err := c.start(); err != nil {
		return nil, err
	}
	account := c.account.Load()
	asked := method + " /api/v1/" + path
	u, body := account.Site+"/api/v1/"+path, io.Reader(nil)
	if method == "GET" {
		u += "?" + form.Encode()
	} else {
		body = strings.NewReader(form.Encode())
	}
	req, err := http.NewRequestWithContext(ctx, method, u, body)
	if err != nil {
		return nil, configErrorf("the site %s cannot be asked: it is not well-formed", account.shown())
	}
	req.SetBasicAuth(account.Email, account.Key)
	if body != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Accept-Language", "en") // the texts of pruning refusals are translated otherwise
	req.Header.Set("Accept-Encoding", "gzip")
	req.Header.Set("User-Agent", c.UserAgent)
	if c.UserAgent == "" {
		req.Header.Set("User-Agent", "zulip-nats")
	}
	// net/http sends a request again by itself where its connection ended without an
	// answer. A poll may be: it acknowledges what was stored before the first of them, the
	// same again, and its answer comes again byte for byte (docs/design.md, section 2).
	// No other poll of this queue leaves before both are over. What changes something must
	// not be, since a second register makes a second queue of which nobody knows. HTTP/2
	// resends even what the server may have taken (a stream that is reset for a breach of
	// the protocol), but nothing whose body cannot be had again.
	req.GetBody = nil
	// A RoundTripper follows no redirect, so neither the key nor an acknowledgement goes
	// to a host that was not named to us.
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		if config, ok := errors.AsType[*ConfigError](err); ok {
			return nil, &transientError{text: config.Msg} // a client certificate that is being renewed
		}
		what := hint(err)
		if what == err.Error() && !c.answered {
			what += "; look whether the site is right, and whether this machine may reach it"
		}
		return nil, &transientError{text: fmt.Sprintf("Zulip cannot be reached at %s: %s", account.shown(), what)}
	}
	c.answered = true
	if c.Seen != nil {
		c.Seen(resp)
	}
	encoding := resp.Header.Get("Content-Encoding")
	if resp.StatusCode == http.StatusOK && (encoding == "" || encoding == "gzip" || encoding == "identity") {
		return resp, nil
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		return nil, &transientError{text: fmt.Sprintf("Zulip answers %s in an encoding that was not asked for, %s", asked,
			quote(encoding))}
	}
	return nil, c.failure(resp, asked)
}

// failure makes an error of a response that is no 200.
func (c *Client) failure(resp *http.Response, asked string) error {
	now, account := time.Now(), c.account.Load()
	raw, _ := readBody(resp, mostError) // what can be read of it
	var body struct {
		Result, Msg, Code string
		RetryAfter        *float64 `json:"retry-after"`
	}
	zulips := json.Unmarshal(raw, &body) == nil && body.Result == "error"
	if !zulips {
		body.Msg, body.Code = "", ""
	}
	body.Msg = c.scrub(body.Msg)
	status := resp.StatusCode
	switch {
	case status == http.StatusTooManyRequests:
		wait := retryAfter(resp.Header.Get("Retry-After"), body.RetryAfter, now)
		return &transientError{text: fmt.Sprintf("Zulip answers 429 (too many requests) to %s", asked),
			limited: true, wait: wait,
			rate: readRate(resp.Header, now)}
	case status == http.StatusUnauthorized || zulips && authCode(body.Code):
		if body.Msg == "" {
			body.Msg = http.StatusText(status)
		}
		return &AuthError{Status: status, Code: body.Code, Msg: body.Msg, Email: account.Email, Site: account.shown()}
	case status == http.StatusBadRequest && zulips:
		return &RefusedError{Kind: refusedKind(body.Code, body.Msg), Status: status, Code: body.Code, Msg: body.Msg,
			Request: asked}
	case status >= 300 && status < 400:
		return &transientError{text: fmt.Sprintf("Zulip answers %d to %s, a redirect %s", status, asked,
			redirect(resp, account)), status: status}
	case !zulips && status < 500 && strings.HasPrefix(account.Site, "http://") && wantsTLS(raw):
		return &transientError{text: fmt.Sprintf("Zulip answers %d to %s: it speaks https there, and the site %s says http; "+
			"write site=%s in the zuliprc",
			status, asked, account.shown(), strings.Replace(account.shown(), "http://", "https://", 1)), status: status}
	}
	text := fmt.Sprintf("Zulip answers %d (%s) to %s", status, kindOf(resp.Header, raw), asked)
	if body.Msg != "" {
		text += ": " + quote(body.Msg)
	}
	if status == http.StatusNotFound {
		text += fmt.Sprintf("; look whether the site %s is right", account.shown())
	}
	return &transientError{text: text, status: status}
}

// redirect says where a response sends us, and what to do about it.
func redirect(resp *http.Response, account *Account) string {
	to, err := resp.Location()
	if err != nil {
		return fmt.Sprintf("to nowhere; the key is not sent there: look whether the site %s is right", account.shown())
	}
	// The port of a scheme's own is no other place.
	base, _ := normalSite(to.Scheme + "://" + to.Host)
	there, here := redact.URL(base), account.shown()
	switch {
	case there == "":
		return fmt.Sprintf("to an odd address; the key is not sent there: look whether the site %s is right", here)
	case there == here:
		return fmt.Sprintf("to another page of %q; it is not followed: look whether the site %s is right", there, here)
	case there == strings.Replace(here, "http://", "https://", 1):
		return fmt.Sprintf("to %q; the key is not sent there: write site=%s in the zuliprc", there, there)
	}
	return fmt.Sprintf("to %q; the key is not sent there: look whether the site %s is right, or write site=%s in the "+
		"zuliprc if that is the server",
		there, here, there)
}

// wantsTLS says whether the body of an error is what servers say to plain HTTP on a port
// for TLS: nginx ("The plain HTTP request was sent to HTTPS port"), Go's net/http
// ("Client sent an HTTP request to an HTTPS server"), Apache ("speaking plain HTTP to an
// SSL-enabled server port").
func wantsTLS(body []byte) bool {
	text := strings.ToLower(string(body))
	return strings.Contains(text, "http request") && strings.Contains(text, "https") ||
		strings.Contains(text, "plain http to an ssl-enabled")
}

// scrub takes the key out of a text, should a server or proxy send it back to us.
func (c *Client) scrub(s string) string {
	a := c.account.Load()
	if a == nil || a.Key == "" {
		return s
	}
	return strings.ReplaceAll(s, a.Key, "(the key)")
}

// readBody reads a small body whole, at most limit bytes of it.
func readBody(resp *http.Response, limit int64) ([]byte, error) {
	r := io.Reader(resp.Body)
	if resp.Header.Get("Content-Encoding") == "gzip" {
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, unexpected(err)
		}
		r = z
	}
	b, err := io.ReadAll(io.LimitReader(r, limit))
	if err == nil && int64(len(b)) == limit {
		err = fmt.Errorf("it is longer than %d bytes", limit)
	}
	return b, err
}

// kindOf says what a body that is not Zulip's JSON is.
func kindOf(h http.Header, body []byte) string {
	kind, _, _ := strings.Cut(h.Get("Content-Type"), ";")
	switch kind = strings.TrimSpace(kind); {
	case strings.HasPrefix(strings.TrimSpace(string(body[:min(len(body), 100)])), "<"), kind == "text/html":
		return "HTML"
	case kind == "application/json":
		return "JSON"
	case kind == "":
		return "no content type"
	}
	return quote(kind)
}

// hint adds to an error of the network what to do about it, where that is known.
func hint(err error) string {
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return err.Error() + "; if the certificate is of your own authority, name that as cert_bundle"
	}
	switch text := err.Error(); {
	case strings.Contains(text, "define Request.GetBody"): // see send
		return "the connection ended before there was an answer"
	case errors.Is(err, http.ErrSchemeMismatch),
		strings.Contains(text, "first record does not look like a TLS handshake"):
		return "it speaks http there, without TLS, and the site says https; look at scheme and port of the site"
	case strings.Contains(text, `malformed HTTP response "\x15\x03`): // the alert with which TLS answers what is none
		return "it speaks https there, and the site says http; write https:// in the site"
	}
	return err.Error()
}
