package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
)

// bucket is one key in one bucket.
type bucket struct {
	cfg     Config
	what    string // begins the sentence of an error
	api     string
	stream  string
	key     string // its subject in the stream
	subject string // its subject for us
}

func newBucket(cfg Config, api string) bucket {
	b := bucket{
		cfg: cfg, what: "lease of " + cfg.Realm, api: api, stream: "KV_" + cfg.Bucket,
		key: "$KV." + cfg.Bucket + "." + cfg.Realm + ".lease",
	}
	b.subject = b.key
	if cfg.Domain+cfg.APIPrefix != "" {
		b.subject = b.api + b.key // as clients of KV do it: nats.go, jetstream/kv.go, useJSPfx
	}
	return b
}

// entry is what a key holds now. The zero entry: there is nothing, and never was.
type entry struct {
	revision uint64
	holder   *Holder // nil: the key is deleted, expired, or not a lease
}

// life is how long the lease lives from now on without renewal, in whole seconds, since
// the server counts in those. It is what the user chose, and four round trips at least: a
// renewal leaves at a third of it, and its answer has to be here before the end.
func (b *bucket) life() time.Duration {
	d := max(b.cfg.TTL, lifeTrips*b.cfg.Conn.RoundTrip())
	return (d + time.Second - 1).Truncate(time.Second)
}

// ask is a request about the bucket.
func (b *bucket) ask(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	return b.cfg.Conn.Ask(ctx, b.what, msg, min(askTimeout, b.cfg.TTL/2))
}

// write puts the holder's name into the key for the time of its life, if the key is as
// expected. nats.go's KeyValue.Update cannot do that: it drops the time to live.
func (b *bucket) write(ctx context.Context, h Holder, revision uint64, life time.Duration) (uint64, error) {
	value, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	return b.publish(ctx, value, revision, "Nats-TTL", strconv.FormatInt(int64(life/time.Second), 10)+"s")
}

// delete marks the key as deleted.
func (b *bucket) delete(ctx context.Context, revision uint64) error {
	_, err := b.publish(ctx, nil, revision, "KV-Operation", "DEL")
	return err
}

func (b *bucket) publish(ctx context.Context, value []byte, revision uint64, header,
	headerValue string) (uint64, error) {
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.subject, Data: value, Header: nats.Header{
		header: {headerValue}, "Nats-Expected-Last-Subject-Sequence": {strconv.FormatUint(revision, 10)},
		"Nats-Expected-Stream": {b.stream},
	}})
	if err != nil {
		return 0, err
	}
	var ack struct {
		Seq uint64 `json:"seq"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil || ack.Seq == 0 {
		return 0, &stream.Error{Kind: stream.Wrong,
			Err: fmt.Errorf("%s: what acknowledges %s is no JetStream", b.what, b.subject)}
	}
	return ack.Seq, nil
}

// read asks for the key. The answer may come from a replica that lags behind: then the
// write that follows is refused.
func (b *bucket) read(ctx context.Context) (entry, error) {
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "DIRECT.GET." + b.stream + "." + b.key})
	if err != nil {
		if k := kindOf(err); k == stream.Forbidden || k == stream.Unavailable {
			return b.readFromLeader(ctx)
		}
		return entry{}, err
	}
	if status := answer.Header.Get("Status"); status != "" {
		if status == "404" {
			return entry{}, nil
		}
		return entry{}, &stream.Error{Kind: stream.Unavailable, Err: fmt.Errorf("%s: reading it: %s %s", b.what, status,
			answer.Header.Get("Description"))}
	}
	revision, err := strconv.ParseUint(answer.Header.Get("Nats-Sequence"), 10, 64)
	if err != nil {
		return entry{}, &stream.Error{Kind: stream.Wrong,
			Err: fmt.Errorf("%s: reading it: an answer without a sequence", b.what)}
	}
	return entry{revision, parseHolder(answer.Header, answer.Data)}, nil
}

// readFromLeader is for buckets without direct gets and for users who may not ask for
// them.
func (b *bucket) readFromLeader(ctx context.Context) (entry, error) {
	question := fmt.Appendf(nil, `{"last_by_subj":%q}`, b.key)
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.MSG.GET." + b.stream, Data: question})
	if e, ok := errors.AsType[*stream.Error](err); ok && e.Code == 10037 { // no message found
		return entry{}, nil
	}
	if err != nil {
		return entry{}, err
	}
	var reply struct {
		Message struct {
			Seq     uint64 `json:"seq"`
			Headers []byte `json:"hdrs"`
			Data    []byte `json:"data"`
		} `json:"message"`
	}
	if err := json.Unmarshal(answer.Data, &reply); err != nil || reply.Message.Seq == 0 {
		return entry{}, &stream.Error{Kind: stream.Wrong,
			Err: fmt.Errorf("%s: reading it: what answers is no JetStream", b.what)}
	}
	header, _ := nats.DecodeHeadersMsg(reply.Message.Headers) // without headers it is a value like any other
	return entry{reply.Message.Seq, parseHolder(header, reply.Message.Data)}, nil
}

// parseHolder is nil for the marks of deleted and expired keys, and for anything that is
// no lease, which may be overwritten.
func parseHolder(header nats.Header, value []byte) *Holder {
	if header.Get("KV-Operation") != "" || header.Get("Nats-Marker-Reason") != "" {
		return nil
	}
	var h Holder
	if json.Unmarshal(value, &h) != nil || h.ID == "" || h.Writer == "" {
		return nil
	}
	return &h
}

// ensure makes the bucket if it is missing, and looks whether it can hold a lease. It
// goes by streams and not by nats.go's CreateKeyValue, which asks for the right to see
// the account's limits.
func (b *bucket) ensure(ctx context.Context) error {
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.INFO." + b.stream})
	switch kindOf(err) {
	case stream.Forbidden:
		return nil // then the first write will show
	case stream.Gone:
		answer, err = b.create(ctx)
	}
	if err != nil || answer == nil {
		return err
	}
	return b.judge(answer)
}

// judge says whether a bucket can hold a lease, by what the server says about it.
func (b *bucket) judge(answer *nats.Msg) error {
	var info jetstream.StreamInfo
	if err := json.Unmarshal(answer.Data, &info); err != nil {
		return &stream.Error{Kind: stream.Wrong,
			Err: fmt.Errorf("%s: what answers about bucket %s is no JetStream: %w", b.what,
				b.cfg.Bucket, err)}
	}
	bad := func(why string) error {
		return &UnsupportedError{fmt.Errorf("bucket %s (stream %s) %s", b.cfg.Bucket, b.stream, why)}
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
func (b *bucket) create(ctx context.Context) (*nats.Msg, error) {
	data, err := json.Marshal(jetstream.StreamConfig{
		Name: b.stream, Description: "who works for which Zulip realm",
		Subjects: []string{"$KV." + b.cfg.Bucket + ".>"},
		Replicas: max(b.cfg.Replicas, 1), MaxMsgsPerSubject: 1, MaxMsgs: -1, MaxBytes: -1, MaxMsgSize: -1,
		MaxConsumers: -1, Discard: jetstream.DiscardNew, AllowRollup: true, DenyDelete: true, AllowDirect: true,
		AllowMsgTTL: true, SubjectDeleteMarkerTTL: markerTTL, Duplicates: 2 * time.Minute,
	})
	if err != nil {
		return nil, err
	}
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.CREATE." + b.stream, Data: data})
	if e, ok := errors.AsType[*stream.Error](err); ok && e.Code == 10058 {
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
