package stream

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// link watches one connection for all streams on it. nats.go leaves two kinds of waiting people alone: who waits for an answer when the
// connection drops waits for its whole deadline, though the answer can never come; and who lacks a permission also waits, since the
// server says so in an error that belongs to no request. A link ends both kinds of waiting at once.
type link struct {
	nc *nats.Conn

	mu      sync.Mutex
	alive   chan struct{} // closed when the connection that it stands for drops
	isAlive bool
	epoch   uint64 // of that connection
	waiters map[*waiter]struct{}
}

// waiter is somebody who waits for an answer and wants to hear of refused permissions that concern it.
type waiter struct {
	concerns func(violation) bool // called with the link's lock held
	refused  chan violation       // holds one
}

// violation is a permission that the server found missing.
type violation struct {
	action  string // "publish", "subscribe"
	subject string
}

var links = struct {
	sync.Mutex
	of map[*nats.Conn]*link
}{of: make(map[*nats.Conn]*link)}

// linkOf returns the link of a connection, made at the first call; its goroutine ends, and it is forgotten, when the connection is
// closed.
func linkOf(nc *nats.Conn) *link {
	links.Lock()
	defer links.Unlock()
	if l := links.of[nc]; l != nil {
		return l
	}
	l := &link{nc: nc, alive: make(chan struct{}), isAlive: true, waiters: make(map[*waiter]struct{})}
	changes := nc.StatusChanged(nats.CONNECTED, nats.RECONNECTING, nats.DISCONNECTED, nats.CLOSED)
	next := nc.ErrorHandler()
	nc.SetErrorHandler(func(nc *nats.Conn, sub *nats.Subscription, err error) {
		if v, ok := parseViolation(err); ok && l.tell(v) {
			return // who waited for it reports it
		}
		if next != nil {
			next(nc, sub, err)
		}
	})
	if nc.IsClosed() {
		nc.RemoveStatusListener(changes)
		return l
	}
	links.of[nc] = l
	go l.watch(changes)
	return l
}

func (l *link) watch(changes chan nats.Status) {
	defer l.nc.RemoveStatusListener(changes)
	for status := range changes {
		l.broken()
		if status == nats.CLOSED || l.nc.IsClosed() {
			links.Lock()
			delete(links.of, l.nc)
			links.Unlock()
			return
		}
	}
}

// broken returns a channel that is closed when the connection drops; a connection that comes back has another one. Whoever takes
// it before sending cannot miss the drop that loses the answer.
//
// It goes by the state of the connection, not by the changes that are told: those come late, after the connection is up again.
func (l *link) broken() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	epoch := l.nc.Stats().Reconnects
	isAlive := l.nc.IsConnected()
	if l.isAlive && (!isAlive || epoch != l.epoch) {
		close(l.alive)
		l.isAlive = false
	}
	// The count is read again: what was connected may be the next connection already, whose turn is then the next call.
	if !l.isAlive && isAlive && epoch == l.nc.Stats().Reconnects {
		l.alive, l.isAlive, l.epoch = make(chan struct{}), true, epoch
	}
	return l.alive
}

func (l *link) wait(concerns func(violation) bool) *waiter {
	w := &waiter{concerns: concerns, refused: make(chan violation, 1)}
	l.mu.Lock()
	l.waiters[w] = struct{}{}
	l.mu.Unlock()
	return w
}

func (l *link) forget(w *waiter) {
	l.mu.Lock()
	delete(l.waiters, w)
	l.mu.Unlock()
}

// tell passes v to all whom it concerns, and says whether there was anybody.
func (l *link) tell(v violation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	told := false
	for w := range l.waiters {
		if !w.concerns(v) {
			continue
		}
		told = true
		select {
		case w.refused <- v:
		default:
		}
	}
	return told
}

// The texts are those of nats-server, client.go (pubPermissionViolation and its neighbours).
var violationText = regexp.MustCompile(`(?i)permissions violation for (publish|subscription)(?: with reply of| to) "([^"]+)"`)

func parseViolation(err error) (violation, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return violation{}, false
	}
	m := violationText.FindStringSubmatch(err.Error())
	if m == nil {
		return violation{}, false
	}
	if m[1][0] == 'p' || m[1][0] == 'P' {
		return violation{"publish", m[2]}, true
	}
	return violation{"subscribe", m[2]}, true
}

// forbidden is the error for a missing permission.
func forbidden(what string, v violation) *Error {
	allow := "publish to"
	if v.action == "subscribe" {
		allow = "subscribe to"
	}
	return errorf(Forbidden, "%s: this NATS user may not %s %q; add it to the user's permissions (%s allow)", what, allow, v.subject,
		v.action)
}

// isReply is true for subjects on which answers come back to this connection.
func (l *link) isReply(subject string) bool {
	prefix := l.nc.Opts.InboxPrefix
	if prefix == "" {
		prefix = "_INBOX"
	}
	return len(subject) > len(prefix) && subject[:len(prefix)] == prefix && subject[len(prefix)] == '.'
}

// request is one question to NATS and its answer, within limit. It ends early when the connection drops or the server says that
// a permission is missing. Errors are *Error, or ctx's own.
func (l *link) request(ctx context.Context, what, subject string, data []byte, limit time.Duration) (*nats.Msg, error) {
	return l.requestMsg(ctx, what, &nats.Msg{Subject: subject, Data: data}, limit)
}

func (l *link) requestMsg(ctx context.Context, what string, msg *nats.Msg, limit time.Duration) (*nats.Msg, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	broken := l.broken()
	select {
	case <-broken:
		return nil, newConnError(what, nats.ErrDisconnected, false)
	default:
	}
	w := l.wait(func(v violation) bool { return v.subject == msg.Subject || l.isReply(v.subject) })
	defer l.forget(w)
	asking, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	asking, cancel := context.WithTimeoutCause(asking, limit, context.DeadlineExceeded)
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() {
		select {
		case <-broken:
			stop(nats.ErrDisconnected)
		case v := <-w.refused:
			stop(forbidden(what, v))
		case <-asking.Done():
		}
	})
	answer, err := l.nc.RequestMsgWithContext(asking, msg)
	cause := context.Cause(asking)
	cancel()
	watching.Wait()
	if err == nil {
		return answer, nil
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if cause != nil {
		err = cause
	}
	return nil, newConnError(what, err, false)
}

// apiReply is what all JSON answers of JetStream's API have in common.
type apiReply struct {
	Error *apiError `json:"error"`
}

func (r *apiReply) failure() *apiError { return r.Error }

// ask is a request to JetStream's API; its JSON answer goes to out, which embeds apiReply. An error in the answer becomes an *Error.
func (l *link) ask(
	ctx context.Context, what, subject string, question any, limit time.Duration, out interface{ failure() *apiError },
) error {
	var data []byte
	if question != nil {
		var err error
		if data, err = json.Marshal(question); err != nil {
			return errorf(Wrong, "%s: %w", what, err)
		}
	}
	answer, err := l.request(ctx, what, subject, data, limit)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(answer.Data, out); err != nil {
		return errorf(Wrong, "%s: the answer on %s is not understood, what gave it is no JetStream: %w", what, subject, err)
	}
	if e := out.failure(); e != nil {
		return newAPIError(what, e)
	}
	return nil
}

// Ask sends one message and waits for its answer, within limit, on a connection that need not belong to a stream. The wait ends early
// when the connection drops or the server says that a permission is missing; what says who asks, in the errors. An answer of JetStream
// that is an error comes back as an [*Error] too. It is for what stands beside the stream: the lease.
func Ask(ctx context.Context, nc *nats.Conn, what string, msg *nats.Msg, limit time.Duration) (*nats.Msg, error) {
	answer, err := linkOf(nc).requestMsg(ctx, what, msg, limit)
	if err != nil {
		return nil, err
	}
	var reply apiReply
	if json.Unmarshal(answer.Data, &reply) == nil && reply.Error != nil {
		return nil, newAPIError(what, reply.Error)
	}
	return answer, nil
}
