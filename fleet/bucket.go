package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
)

const (
	markerTTL  = time.Minute // how long the bucket remembers that a key is gone
	askTimeout = 2 * time.Second
	what       = "sharing of the realms" // begins the sentence of an error
)

// bucket is the Store in NATS.
type bucket struct {
	conn   *stream.Conn
	name   string
	api    string
	stream string
	prefix string // of all keys: their subjects in the stream
	ours   string // the same, as we write to it
	limit  time.Duration
}

func newBucket(cfg Config, api string) *bucket {
	b := &bucket{conn: cfg.Conn, name: cfg.Bucket, api: api, stream: "KV_" + cfg.Bucket,
		prefix: "$KV." + cfg.Bucket + ".", limit: min(askTimeout, cfg.TTL/2)}
	b.ours = b.prefix
	if cfg.Domain+cfg.APIPrefix != "" {
		b.ours = b.api + b.prefix // as clients of KV do it: nats.go, jetstream/kv.go, useJSPfx
	}
	return b
}

// RoundTrip is [stream.Conn.RoundTrip].
func (b *bucket) RoundTrip() time.Duration { return b.conn.RoundTrip() }

// ask is a request about the bucket.
func (b *bucket) ask(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	return b.conn.Ask(ctx, what, msg, b.limit)
}

// Write is [Store.Write]. nats.go's KeyValue.Update cannot do that: it drops the time to
// live.
func (b *bucket) Write(ctx context.Context, key string, value []byte, revision uint64, life time.Duration) (uint64,
	error) {
	header := nats.Header{}
	if life > 0 {
		header.Set("Nats-TTL", seconds(life))
	}
	return b.publish(ctx, key, value, revision, header)
}

// Delete is [Store.Delete]. Without a life of its own the mark would stay for ever, one
// for each session that there ever was; and one of DEL would leave another mark behind when
// it expires (nats-server, sdm.go).
func (b *bucket) Delete(ctx context.Context, key string, revision uint64) (uint64, error) {
	return b.publish(ctx, key, nil, revision, nats.Header{"KV-Operation": {"PURGE"}, "Nats-TTL": {seconds(markerTTL)}})
}

// seconds is a time as the server takes it.
func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) + "s" }

func (b *bucket) publish(ctx context.Context, key string, value []byte, revision uint64, header nats.Header) (uint64,
	error) {
	header["Nats-Expected-Last-Subject-Sequence"] = []string{strconv.FormatUint(revision, 10)}
	header["Nats-Expected-Stream"] = []string{b.stream}
	subject := b.ours + key
	answer, err := b.ask(ctx, &nats.Msg{Subject: subject, Data: value, Header: header})
	if err != nil {
		return 0, err
	}
	var ack struct {
		Seq uint64 `json:"seq"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil || ack.Seq == 0 {
		return 0, &stream.Error{Kind: stream.Wrong,
			Err: fmt.Errorf("%s: what acknowledges %s is no JetStream", what, subject)}
	}
	return ack.Seq, nil
}

// Read is [Store.Read]. It goes to the stream's leader; one that was deposed, or that was
// just chosen, may answer what was.
func (b *bucket) Read(ctx context.Context, key string) (Entry, error) {
	question := fmt.Appendf(nil, `{"last_by_subj":%q}`, b.prefix+key)
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.MSG.GET." + b.stream, Data: question})
	if codeOf(err) == 10037 { // no message found
		return Entry{}, nil
	}
	if err != nil {
		return Entry{}, err
	}
	var reply struct {
		Message struct {
			Seq     uint64 `json:"seq"`
			Headers []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(answer.Data, &reply); err != nil || reply.Message.Seq == 0 {
		return Entry{}, &stream.Error{Kind: stream.Wrong,
			Err: fmt.Errorf("%s: reading %s: what answers is no JetStream", what, key)}
	}
	header, _ := nats.DecodeHeadersMsg(reply.Message.Headers) // without headers it is a value like any other
	return newEntry(reply.Message.Seq, header, reply.Message.Data), nil
}

// newEntry is what a message of the bucket says of its key.
func newEntry(revision uint64, header nats.Header, value []byte) Entry {
	e := Entry{Revision: revision}
	if header.Get("KV-Operation") == "" && header.Get("Nats-Marker-Reason") == "" {
		e.Value = append([]byte{}, value...)
	}
	return e
}

// Watch is [Store.Watch].
func (b *bucket) Watch(ctx context.Context) (<-chan Update, error) {
	messages, err := b.conn.Watch(ctx, what, b.api, b.stream, b.prefix+">")
	if err != nil {
		return nil, err
	}
	updates := make(chan Update)
	go func() {
		defer close(updates)
		for m := range messages {
			u := Update{Err: m.Err}
			if m.Stored != nil {
				u.Key, u.Entry = strings.TrimPrefix(m.Subject, b.prefix), newEntry(m.Seq, m.Header, m.Data)
			}
			select {
			case updates <- u:
			case <-ctx.Done():
				return
			}
		}
	}()
	return updates, nil
}

// Ensure is [Store.Ensure]. It goes by streams and not by nats.go's CreateKeyValue, which
// asks for the right to see the account's limits.
func (b *bucket) Ensure(ctx context.Context, replicas int) error {
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.INFO." + b.stream})
	switch kindOf(err) {
	case stream.Forbidden:
		return nil // then the first write will show
	case stream.Gone:
		answer, err = b.create(ctx, replicas)
	}
	if err != nil || answer == nil {
		return err
	}
	return b.judge(answer)
}

// judge says whether a bucket can hold keys that expire, by what the server says about it.
func (b *bucket) judge(answer *nats.Msg) error {
	var info jetstream.StreamInfo
	if err := json.Unmarshal(answer.Data, &info); err != nil {
		return &stream.Error{Kind: stream.Wrong,
			Err: fmt.Errorf("%s: what answers about bucket %s is no JetStream: %w", what, b.name, err)}
	}
	bad := func(why string) error {
		return &UnsupportedError{fmt.Errorf("bucket %s (stream %s) %s", b.name, b.stream, why)}
	}
	switch c := info.Config; {
	case !c.AllowMsgTTL:
		return bad("keeps keys for ever (allow_msg_ttl is off); turn it on: nats stream edit " + b.stream +
			" --allow-msg-ttl; that takes nats-server 2.11 or newer")
	case c.Sealed || c.NoAck:
		return bad("takes no writes, or acknowledges none (sealed, no_ack)")
	}
	return nil
}

// create makes the bucket, and returns what the server made of it: an old one passes over
// what it does not know, the life of keys say. It returns nil if somebody else makes it
// at the same time.
func (b *bucket) create(ctx context.Context, replicas int) (*nats.Msg, error) {
	data, err := json.Marshal(jetstream.StreamConfig{
		Name: b.stream, Description: "who works for which Zulip realm",
		Subjects: []string{b.prefix + ">"},
		Replicas: max(replicas, 1), MaxMsgsPerSubject: 1, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1,
		MaxConsumers: -1, Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true, AllowDirect: true,
		AllowMsgTTL: true, SubjectDeleteMarkerTTL: markerTTL, Duplicates: 2 * time.Minute,
	})
	if err != nil {
		return nil, err
	}
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.CREATE." + b.stream, Data: data})
	if codeOf(err) == 10058 {
		return nil, nil // somebody was faster
	}
	return answer, err
}

func kindOf(err error) stream.Kind {
	if e, ok := errors.AsType[*stream.Error](err); ok {
		return e.Kind
	}
	return 0
}

func codeOf(err error) int {
	if e, ok := errors.AsType[*stream.Error](err); ok {
		return e.Code
	}
	return 0
}

func asUnsupported(err error) error {
	if _, ok := errors.AsType[*UnsupportedError](err); ok {
		return err
	}
	return &UnsupportedError{err}
}

// unsupported is true for errors that waiting does not heal.
func unsupported(err error) bool {
	if _, ok := errors.AsType[*UnsupportedError](err); ok {
		return true
	}
	switch kindOf(err) {
	case stream.Forbidden, stream.Wrong:
		return true
	case stream.Full:
		return codeOf(err) == 10027 // no more streams, so no bucket
	}
	return false
}
