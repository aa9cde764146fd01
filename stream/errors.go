package stream

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Kind says what a caller can do about an [Error]. It is not a list of causes: it is the
// list of different things to do next.
type Kind uint8

const (
	// Unclear: no answer, or half of one. What was sent may be stored, now or seconds
	// later. Read before writing again.
	Unclear Kind = iota + 1
	// Refused: the server compared what the write should follow with what is there, and
	// found something else. Read again.
	Refused
	// Unavailable: the server, the stream's leader or the connection is not there now.
	// Nothing is promised about what was sent before; try again later, after a read.
	Unavailable
	// Full: the stream, the account or the server has no room. Wait, like Unavailable,
	// but somebody has to make room.
	Full
	// Forbidden: the user lacks a permission; the error names the subject.
	Forbidden
	// TooLarge: the message can never be stored as it is. Nothing was sent.
	TooLarge
	// Gone: the stream does not exist (any more).
	Gone
	// Wrong: the request or the stream is not as it must be, and asking again does not
	// help: acknowledged by another stream or JetStream domain, sealed, a header that the
	// stream does not take.
	Wrong
)

// String is the kind's name in lower case, as a label for logs and metrics.
func (k Kind) String() string {
	switch k {
	case Unclear:
		return "unclear"
	case Refused:
		return "refused"
	case Unavailable:
		return "unavailable"
	case Full:
		return "full"
	case Forbidden:
		return "forbidden"
	case TooLarge:
		return "too large"
	case Gone:
		return "gone"
	case Wrong:
		return "wrong"
	}
	return "unknown"
}

// Error is any trouble with a stream, except that the stream's settings break the
// promise, which is a [ConfigError].
type Error struct {
	Kind Kind
	// Code is JetStream's own error code (`nats errors lookup CODE` explains it), 0 where
	// the trouble is not an answer of JetStream.
	Code int
	// Err is a sentence for an operator.
	Err error
}

// Error is the sentence for an operator.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap is for errors.Is and errors.As.
func (e *Error) Unwrap() error { return e.Err }

func errorf(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// Away says whether an error is about nothing but the connection, which is down or
// closed. Why it is, the connection's own log says.
func Away(err error) bool {
	return errors.Is(err, nats.ErrDisconnected) || errors.Is(err, nats.ErrReconnectBufExceeded) ||
		errors.Is(err, nats.ErrConnectionReconnecting) || errors.Is(err, nats.ErrConnectionClosed)
}

// ConfigError is something that only a person can put right: a setting of ours, or a
// setting of a stream that breaks the promise.
type ConfigError struct {
	// Stream is the stream's name; empty where it is not about a stream.
	Stream string
	// Setting names what is wrong: a field of the stream's configuration, or of ours.
	// Several are separated by commas.
	Setting string
	// Reason says why it is wrong and what to do.
	Reason string
}

func (e *ConfigError) Error() string {
	if e.Stream == "" {
		return e.Setting + ": " + e.Reason
	}
	return fmt.Sprintf("stream %s: %s", e.Stream, e.Reason)
}

// verdict is what an error code of JetStream means to a writer with expectations.
type verdict struct {
	kind   Kind
	advice string
}

const (
	adviceRead   = "something else was stored in between, or is being stored; the stream has to be read again"
	adviceWait   = "it may pass by itself"
	adviceBug    = "this is a bug in zulip-nats, or somebody changed the stream's settings"
	adviceOther  = "the next write goes by another path"
	adviceNoRoom = "make room or raise the limit"
)

// verdicts has the codes of nats-server's errors.json that a writer, a reader or a
// creator can meet. Codes that are not here are judged by their status code.
var verdicts = map[jetstream.ErrorCode]verdict{
	10071: {Refused, adviceRead}, // wrong last sequence
	10164: {Refused, adviceRead}, // wrong last sequence, another write with the same filter is in flight
	10063: {Refused, adviceRead}, // expected stream sequence does not match
	10070: {Refused, adviceRead}, // wrong last message id
	10158: {Refused, "a message with the same Nats-Msg-Id is being stored; the stream has to be read again"},
	10201: {Refused, "the batch holds a Nats-Msg-Id that the stream has already; the stream has to be read again"},

	10176: {Unclear, "the server did not get the whole batch; the stream has to be read again"},
	10208: {Unclear, "the server has ended the batch; the stream has to be read again"},

	10008: {Unavailable, "the cluster has no leader at the moment; " + adviceWait},
	10009: {Unavailable, adviceWait}, // cluster can not handle request
	10004: {Unavailable, adviceWait}, // cluster incomplete
	10118: {Unavailable, "the servers that hold it are offline"},
	10194: {Unavailable, "the servers that hold it are offline or too old for it"},
	10163: {Unavailable, adviceWait}, // expected last sequence per subject temporarily unavailable
	10167: {Unavailable, "the server has too much to store at the moment; " + adviceWait},
	10210: {Unavailable, "too many batches are open at the moment; " + adviceWait},
	10211: {Unavailable, "too many batches are open at the moment; " + adviceWait},
	10174: {Unavailable, "allow_atomic is off; " + adviceOther},
	10205: {Unavailable, "allow_batched is off; " + adviceOther},
	10199: {Unavailable, "the server takes smaller batches only; the next ones are smaller"},

	10077: {Full, "the stream is full and its discard policy is new; " + adviceNoRoom},
	10023: {Full, "the server's JetStream storage is full; " + adviceNoRoom},
	10002: {Full, "the account's JetStream storage is full; " + adviceNoRoom},
	10028: {Full, "the server has too little memory for it; " + adviceNoRoom},
	10047: {Full, "the server has too little storage for it; " + adviceNoRoom},
	10122: {Full, "the account's limit for the size of a stream is lower; " + adviceNoRoom},
	10027: {Full, "the account may not have more streams; delete one or raise the limit"},
	10074: {Full, "it has fewer servers than replicas were asked for"},

	10054: {TooLarge, "the stream's max_msg_size is lower"},
	10097: {TooLarge, "headers are limited to 64 KiB"},

	10059: {Gone, "it was deleted, or never made"},

	10039: {Wrong, "enable JetStream for this account, or use another account"},
	10076: {Wrong, "start nats-server with -js, or enable JetStream in its configuration"},
	10060: {Wrong, "another stream captures the subject; remove it from one of the two"},
	10109: {Wrong, "the stream is sealed and takes no more messages; use another stream"},
	10165: {Wrong, adviceBug}, // invalid TTL
	10166: {Wrong, "allow_msg_ttl is off; turn it on (nats stream edit), or send no TTL"},
	10111: {Wrong, adviceBug}, // rollup
	10175: {Wrong, adviceBug}, // batch sequence missing
	10177: {Wrong, adviceBug}, // header not supported in a batch
	10179: {Wrong, adviceBug}, // batch id
	10200: {Wrong, adviceBug}, // batch commit
	10206: {Wrong, adviceBug}, // fast batch pattern
	10207: {Wrong, adviceBug}, // fast batch id
	10193: {Wrong, adviceBug}, // expected sequence per subject missing
	10169: {Wrong, "the stream is a counter (allow_msg_counter); use another stream"},
}

// newAPIError makes an Error of JetStream's answer; what says what was tried, as in
// "stream ZULIP_acme: write".
func newAPIError(what string, e *jetstream.APIError) *Error {
	v, known := verdicts[e.ErrorCode]
	switch {
	case !known && (e.Code == 503 || e.Code == 429):
		v = verdict{Unavailable, adviceWait}
	case !known && e.Code >= 500:
		v = verdict{Unclear, adviceWait}
	case !known:
		v = verdict{Wrong, "NATS takes no such request from us"}
	case e.ErrorCode == 10077 && strings.Contains(e.Description, "too large"):
		// The file store takes no record above 32 MiB (nats-server, filestore.go), and
		// says so under the code of a full stream.
		v = verdict{TooLarge, "nats-server stores no message of this size"}
	}
	return &Error{Kind: v.kind, Code: int(e.ErrorCode),
		Err: fmt.Errorf("%s: %s (error %d, see: nats errors lookup %d): %s", what, e.Description, e.ErrorCode,
			e.ErrorCode, v.advice)}
}

// newConnError makes an Error of what nats.go says about a request or a publish. sent is
// true if something may have left.
func newConnError(what string, err error, sent bool) error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	kind := Unavailable
	if sent {
		kind = Unclear
	}
	switch {
	case errors.Is(err, nats.ErrNoResponders):
		return errorf(Unavailable, "%s: nobody answers: no JetStream server is ready for it, or the stream has no "+
			"leader at the moment; %s: %w", what, adviceWait, err)
	case errors.Is(err, nats.ErrMaxPayload):
		return errorf(TooLarge, "%s: larger than the server's max_payload: %w", what, err)
	case errors.Is(err, nats.ErrReconnectBufExceeded), errors.Is(err, nats.ErrConnectionReconnecting),
		errors.Is(err, nats.ErrDisconnected):
		return errorf(kind, "%s: the connection to NATS is down: %w", what, err)
	case errors.Is(err, nats.ErrConnectionClosed):
		return errorf(kind, "%s: the connection to NATS is closed: %w", what, err)
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return errorf(kind, "%s: NATS did not answer in time: %w", what, err)
	}
	return errorf(kind, "%s: %w", what, err)
}
