package stream

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"
)

// An object store is a stream with a convention (NATS ADR-20): the object's bytes are
// messages on $O.<bucket>.C.<nuid>, and one message on $O.<bucket>.M.<name in base64>
// says which they are. Readers see the object from that last message on.
//
// It is not written by jetstream.ObjectStore, for what its Put does in nats.go 1.55:
//
//   - It sends the name without waiting for the chunks. A full store refuses a large
//     chunk and takes the small name, and the object of that name that was whole cannot
//     be read any more.
//   - A chunk that finds no leader is sent again behind the others. Put succeeds, and the
//     bytes are in another order than the digest says.
//   - It asks for the old object by a direct get, for which docs/permissions.md gives no
//     right.
//
// Here the acknowledgements are those of everything else, so a dropped connection, a
// missing permission and a full store come out as the same errors.

const (
	chunkSize    = 128 << 10
	chunksInAir  = 32
	metaRoom     = 1 << 10 // what the message about the object may take besides its name
	rollupHeader = "Nats-Rollup"
)

var bucketName = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// Bucket is the name of the realm's object store.
func (s *Stream) Bucket() string { return s.cfg.Bucket }

// PutObject keeps data under name in the realm's object store, made if it is missing, for
// messages that are larger than a message may be. The same name again replaces it.
//
// A store that is made gets the age limit, storage and replicas of the stream. What is
// larger than the store's own limit is TooLarge: it will never fit. A store without room
// now is Full.
func (s *Stream) PutObject(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	if !bucketName.MatchString(s.cfg.Bucket) {
		return &ConfigError{Setting: "object store",
			Reason: fmt.Sprintf("%q cannot be the name of a bucket; use letters, digits, _ and -",
				s.cfg.Bucket)}
	}
	store, err := s.objectStore(ctx)
	if err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.put(ctx, store, name, data)
}

// objectStore reads the settings of the bucket's stream, which is made if it is missing.
func (s *Stream) objectStore(ctx context.Context) (*streamInfo, error) {
	stream := s.objectStream()
	info, err := s.readInfo(ctx, stream)
	if e, ok := errors.AsType[*Error](err); !ok || e.Kind != Gone {
		return info, err
	}
	like, err := s.readInfo(ctx, s.name)
	if err != nil {
		return nil, err
	}
	config := jetstream.StreamConfig{
		Name:        stream,
		Description: "Zulip events of " + s.cfg.Realm + " that are too large for a message",
		Subjects:    []string{"$O." + s.cfg.Bucket + ".C.>", "$O." + s.cfg.Bucket + ".M.>"},
		Storage:     like.Config.Storage,
		Replicas:    like.Config.Replicas,
		MaxAge:      like.Config.MaxAge,
		Discard:     jetstream.DiscardNew,
		AllowDirect: true,
		AllowRollup: true,
		Metadata:    map[string]string{"zulip-bridge": cmp.Or(s.cfg.Version, "unknown")},
	}
	create := func() error {
		return s.link.ask(ctx, "object store "+s.cfg.Bucket+": creating it", s.api+"STREAM.CREATE."+stream, &config,
			apiTimeout, &apiReply{})
	}
	err = create()
	if e, ok := errors.AsType[*Error](err); ok &&
		e.Code == 10113 && like.Config.MaxBytes > 0 { // the account wants a limit of size
		config.MaxBytes = like.Config.MaxBytes
		err = create()
	}
	if e, ok := errors.AsType[*Error](err); err != nil && !(ok && e.Code == 10058) { // 10058: somebody was faster
		return nil, err
	}
	return s.readInfo(ctx, stream)
}

func (s *Stream) put(ctx context.Context, store *streamInfo, name string, data []byte) error {
	bucket, stream := s.cfg.Bucket, store.Config.Name
	what := fmt.Sprintf("object store %s: %s (%d bytes)", bucket, name, len(data))
	metaSubject := metaSubject(bucket, name)
	info := jetstream.ObjectInfo{ObjectMeta: jetstream.ObjectMeta{Name: name}, Bucket: bucket, NUID: nuid.Next(),
		Size: uint64(len(data))}
	chunkSubject := "$O." + bucket + ".C." + info.NUID

	limit := s.link.nc.MaxPayload()
	if size := int64(store.Config.MaxMsgSize); size > 0 {
		limit = min(limit, size)
	}
	if limit < int64(len(name))+metaRoom {
		return errorf(TooLarge, "%s: the store's messages may have %d bytes only (max_msg_size, max_payload), too "+
			"few for an object",
			what, limit)
	}
	chunk := int(min(limit, chunkSize))
	info.Chunks = uint32((len(data) + chunk - 1) / chunk)
	info.Opts = &jetstream.ObjectMetaOptions{ChunkSize: uint32(chunk)}
	sum := sha256.New()
	sum.Write(data)
	info.Digest = jetstream.GetObjectDigestValue(sum)
	about, err := json.Marshal(&info)
	if err != nil {
		return errorf(Wrong, "%s: %w", what, err)
	}
	needed := int64(len(data)) + int64(info.Chunks)*int64(recordFrame+len(chunkSubject)) +
		int64(len(about)+recordFrame+len(metaSubject)+len("NATS/1.0\r\nNats-Rollup: sub\r\n\r\n"))
	if most := store.Config.MaxBytes; most > 0 && needed > most {
		return errorf(TooLarge, "%s: it needs %d bytes, more than the %d that the store may ever hold (max_bytes)",
			what, needed, most)
	}
	if most := store.Config.MaxMsgs; most > 0 && int64(info.Chunks)+1 > most {
		return errorf(TooLarge, "%s: it needs %d messages, more than the %d that the store may ever hold "+
			"(max_msgs)", what,
			info.Chunks+1, most)
	}
	old, err := s.get(ctx, stream, getRequest{LastFor: metaSubject})
	if err != nil {
		return err
	}

	p := &objectPut{
		appendOp: &appendOp{Stream: s, ctx: ctx, what: what, broken: s.link.broken()}, stream: stream, domain: store.Domain,
	}
	p.waiter = s.link.wait(func(v violation) bool {
		return v.subject == chunkSubject || v.subject == metaSubject || s.link.unheard(v)
	})
	defer s.link.forget(p.waiter)
	s.out.token++
	p.prefix = s.out.inbox + "." + strconv.FormatUint(s.out.token, 36) + "."
	err = p.send(chunkSubject, metaSubject, data, chunk, about)
	if err != nil {
		// If the power fails here, the chunks are left without a name; the store's age
		// limit clears them.
		s.purge(ctx, stream, info.NUID)
		return err
	}
	// From here on readers see the new object. The old one's chunks are nobody's.
	var before jetstream.ObjectInfo
	if old != nil && json.Unmarshal(old.Data, &before) == nil && before.NUID != "" && before.NUID != info.NUID {
		s.purge(ctx, stream, before.NUID)
	}
	return nil
}

// purge removes the chunks of an object that nothing points to. What it cannot remove goes
// with the store's age limit. A purge leaves the bytes in the file until that is written
// anew (nats-server, filestore.go), so where messages are to be erased they are
// overwritten before.
func (s *Stream) purge(ctx context.Context, stream, nuid string) {
	ctx = context.WithoutCancel(ctx)
	if s.cfg.Erase {
		_ = s.eraseChunks(ctx, s.Epoch(), nuid)
	}
	_ = s.link.ask(ctx, "object store: purging", s.api+"STREAM.PURGE."+stream,
		map[string]string{"filter": "$O." + s.cfg.Bucket + ".C." + nuid},
		s.cfg.AckTimeout, &apiReply{})
}

// objectPut is one object under way.
type objectPut struct {
	*appendOp
	stream, domain string
	prefix         string // of the reply subjects
	inAir          int
}

func (p *objectPut) send(chunkSubject, metaSubject string, data []byte, chunk int, about []byte) error {
	w := &p.out
	w.begin()
	defer w.end()
	p.startTimer()
	for n := 0; len(data) > 0; n++ {
		part := data[:min(chunk, len(data))]
		data = data[len(part):]
		w.load(&Message{Subject: chunkSubject, Data: part})
		if err := p.post(n, chunksInAir); err != nil {
			return err
		}
	}
	if err := p.drain(0); err != nil {
		return err
	}
	// All chunks are acknowledged: only now may the object get its name.
	w.load(&Message{Subject: metaSubject, Data: about, Headers: []Header{{rollupHeader, "sub"}}})
	return p.post(-1, 1)
}

// post publishes the loaded message and waits until fewer than room are unacknowledged.
func (p *objectPut) post(n, room int) error {
	p.out.msg.Reply = p.prefix + strconv.Itoa(n)
	if err := p.link.nc.PublishMsg(&p.out.msg); err != nil {
		return newConnError(p.what, err, p.sent)
	}
	p.sent = true
	p.inAir++
	return p.drain(room - 1)
}

// drain waits until at most so many messages are unacknowledged. Once one of them is
// refused it waits for the answers to all of them: a smaller one may still fit where a
// larger one did not, and has to have landed before it is purged.
func (p *objectPut) drain(most int) error {
	var refusal error
	for p.inAir > most {
		msg, err := p.next()
		if err != nil {
			return cmp.Or(refusal, err)
		}
		if !strings.HasPrefix(msg.Subject, p.prefix) {
			continue
		}
		p.inAir--
		p.startTimer()
		if err := p.acknowledged(msg); err != nil && refusal == nil {
			refusal, most = err, 0
		}
	}
	return refusal
}

// acknowledged says nothing if the answer is that the store has the message.
func (p *objectPut) acknowledged(msg *nats.Msg) error {
	a, err := p.parse(msg)
	switch {
	case err != nil:
		return err
	case a.Error != nil:
		return newAPIError(p.what, a.Error)
	case a.Stream != p.stream || a.Domain != p.domain:
		return errorf(Wrong, "%s: acknowledged by stream %q in JetStream domain %q instead of %q in domain %q; two "+
			"streams capture the same subjects", p.what, a.Stream, a.Domain, p.stream, p.domain)
	}
	return nil
}
