package lease

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nats-io/nats.go"

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

func newBucket(cfg Config) bucket {
	b := bucket{
		cfg: cfg, what: "lease of " + cfg.Realm, api: "$JS.API.", stream: "KV_" + cfg.Bucket,
		key: "$KV." + cfg.Bucket + "." + cfg.Realm + ".lease",
	}
	b.subject = b.key
	if cfg.Domain != "" {
		b.api = "$JS." + cfg.Domain + ".API."
		b.subject = b.api + b.key
	}
	return b
}

// entry is what a key holds now. The zero entry: there is nothing, and never was.
type entry struct {
	revision uint64
	holder   *Holder // nil: the key is deleted, expired, or not a lease
}

// ask is a request about the bucket.
func (b *bucket) ask(ctx context.Context, msg *nats.Msg) (*nats.Msg, error) {
	return stream.Ask(ctx, b.cfg.Conn, b.what, msg, min(askTimeout, b.cfg.TTL/2))
}

// write puts the holder's name into the key for the time of its life, if the key is as expected. nats.go's KeyValue.Update cannot do
// that: it drops the time to live.
func (b *bucket) write(ctx context.Context, h Holder, revision uint64) (uint64, error) {
	value, err := json.Marshal(h)
	if err != nil {
		return 0, err
	}
	seconds := int64((b.cfg.TTL + time.Second - 1) / time.Second) // whole seconds, never fewer than our own deadline counts
	return b.publish(ctx, value, revision, "Nats-TTL", strconv.FormatInt(seconds, 10)+"s")
}

// delete marks the key as deleted.
func (b *bucket) delete(ctx context.Context, revision uint64) error {
	_, err := b.publish(ctx, nil, revision, "KV-Operation", "DEL")
	return err
}

func (b *bucket) publish(ctx context.Context, value []byte, revision uint64, header, headerValue string) (uint64, error) {
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.subject, Data: value, Header: nats.Header{
		header: {headerValue}, "Nats-Expected-Last-Subject-Sequence": {strconv.FormatUint(revision, 10)}, "Nats-Expected-Stream": {b.stream},
	}})
	if err != nil {
		return 0, err
	}
	var ack struct {
		Seq uint64 `json:"seq"`
	}
	if err := json.Unmarshal(answer.Data, &ack); err != nil || ack.Seq == 0 {
		return 0, &stream.Error{Kind: stream.Wrong, Err: fmt.Errorf("%s: what acknowledges %s is no JetStream", b.what, b.subject)}
	}
	return ack.Seq, nil
}

// read asks for the key. The answer may come from a replica that lags behind: then the write that follows is refused.
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
		return entry{}, &stream.Error{Kind: stream.Wrong, Err: fmt.Errorf("%s: reading it: an answer without a sequence", b.what)}
	}
	return entry{revision, parseHolder(answer.Header, answer.Data)}, nil
}

// readFromLeader is for buckets without direct gets and for users who may not ask for them.
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
		return entry{}, &stream.Error{Kind: stream.Wrong, Err: fmt.Errorf("%s: reading it: what answers is no JetStream", b.what)}
	}
	header, _ := nats.DecodeHeadersMsg(reply.Message.Headers) // without headers it is a value like any other
	return entry{reply.Message.Seq, parseHolder(header, reply.Message.Data)}, nil
}

// parseHolder is nil for the marks of deleted and expired keys, and for anything that is no lease, which may be overwritten.
func parseHolder(header nats.Header, value []byte) *Holder {
	if header.Get("KV-Operation") != "" || header.Get("Nats-Marker-Reason") != "" {
		return nil
	}
	var h Holder
	if json.Unmarshal(value, &h) != nil || h.ID == "" {
		return nil
	}
	return &h
}

// ensure makes the bucket if it is missing, and looks whether it can hold a lease. It goes by streams and not by nats.go's CreateKeyValue,
// which asks for the right to see the account's limits.
func (b *bucket) ensure(ctx context.Context) error {
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.INFO." + b.stream})
	switch kindOf(err) {
	case stream.Forbidden:
		return nil // then the first write will show
	case stream.Gone:
		return b.create(ctx)
	}
	if err != nil {
		return err
	}
	var info struct {
		Config struct {
			AllowTTL   bool  `json:"allow_msg_ttl"`
			MaxMsgsPer int64 `json:"max_msgs_per_subject"`
			NoAck      bool  `json:"no_ack"`
			Sealed     bool  `json:"sealed"`
		} `json:"config"`
	}
	if err := json.Unmarshal(answer.Data, &info); err != nil {
		return &stream.Error{Kind: stream.Wrong, Err: fmt.Errorf("%s: what answers about bucket %s is no JetStream: %w", b.what,
			b.cfg.Bucket, err)}
	}
	bad := func(why string) error {
		return &UnsupportedError{fmt.Errorf("bucket %s (stream %s) %s", b.cfg.Bucket, b.stream, why)}
	}
	switch c := info.Config; {
	case !c.AllowTTL:
		return bad("keeps keys for ever (allow_msg_ttl is off); turn it on: nats stream edit " + b.stream + " --allow-msg-ttl")
	case c.Sealed || c.NoAck:
		return bad("takes no writes, or acknowledges none (sealed, no_ack)")
	}
	return nil
}

func (b *bucket) create(ctx context.Context) error {
	config := map[string]any{
		"name": b.stream, "description": "who works for which Zulip realm", "subjects": []string{"$KV." + b.cfg.Bucket + ".>"},
		"retention": "limits", "storage": "file", "num_replicas": max(b.cfg.Replicas, 1), "max_msgs_per_subject": 1, "max_msgs": -1,
		"max_bytes": -1, "max_msg_size": -1, "max_consumers": -1, "discard": "new", "allow_rollup_hdrs": true, "deny_delete": true,
		"allow_direct": true, "allow_msg_ttl": true, "subject_delete_marker_ttl": markerTTL, "duplicate_window": 2 * time.Minute,
	}
	data, err := json.Marshal(config)
	if err != nil {
		return err
	}
	_, err = b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.CREATE." + b.stream, Data: data})
	if e, ok := errors.AsType[*stream.Error](err); ok && e.Code == 10058 {
		return nil // somebody was faster
	}
	return err
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
