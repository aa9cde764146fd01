package bridge

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"zulip-nats/events"
	"zulip-nats/logevent"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// DefaultOversizeWait is how long an event that is larger than a message may be waits for
// the object store, if nothing else is said.
const DefaultOversizeWait = 10 * time.Minute

// The object store takes nothing: that is waited for, or was for long enough.
const (
	objectsAwaited = "waited for"
	objectsGone    = "given up"
)

// errNotCarried says that the object store does not take an event.
var errNotCarried = errors.New("the object store does not take it")

// claimCheck puts a body that is too large for a message in the object store and gives
// the stub that stands for it: no body, and headers that say where it is, how large, and
// its digest. The object comes first, so a stub never points at nothing; a crash in
// between leaves an object without a stub, which the bucket's age clears. The name is the
// same each time, so a retry replaces it by the same bytes.
func (b *Bridge) claimCheck(ctx context.Context, e entry, name string, in phase) (entry, error) {
	name = objectName(b.realm, e.after.Queue, name)
	if err := b.putObject(ctx, name, e.msg.Data, in); err != nil {
		return entry{}, err
	}
	digest := sha256.Sum256(e.msg.Data)
	logevent.EventOversize.Info(b.log).Str("object", name).Int("bytes", len(e.msg.Data)).
		Msg("an event is larger than a message may be: it is in the object store")
	e.msg.Headers = append(e.msg.Headers[:len(e.msg.Headers):len(e.msg.Headers)],
		stream.Header{Key: events.HeaderObject, Value: name},
		stream.Header{Key: events.HeaderSize, Value: itoa(int64(len(e.msg.Data)))},
		stream.Header{Key: events.HeaderDigest, Value: "SHA-256=" + hex.EncodeToString(digest[:])})
	if b.cfg.CloudEvents {
		e.msg.Headers = append(e.msg.Headers, b.cloudDataRef(name))
	}
	e.object, e.msg.Data = len(e.msg.Data), nil
	return e, nil
}

// objectName is the name of what the object store has of an event, by its id, or of a
// message from history.
func objectName(realm subjects.Realm, queue, name string) string {
	return fmt.Sprintf("%s/%s/%s", realm, queue, name)
}

// putObject waits for the object store, but never so long that the queue is lost for one
// event. The wait counts only if the stream itself takes writes, which a record shows:
// otherwise it is NATS that is away, and everything waits. [errNotCarried]: what is
// larger than the store ever takes, or was waited for in vain. Once that happened the
// next event is tried once, until one is taken.
func (b *Bridge) putObject(ctx context.Context, name string, data []byte, in phase) error {
	most := min(cmp.Or(b.cfg.OversizeWait, DefaultOversizeWait), b.record.Life()/4)
	if s, _ := b.objects.State(); s.Reason == objectsGone {
		most = 0
	}
	writes := false
	for began, wait := time.Now(), newRetry(); ; {
		err := b.stream.PutObject(ctx, name, data)
		if err != nil && ctx.Err() == nil {
			b.report.failed(SideObjects, err)
		}
		switch se, _ := errors.AsType[*stream.Error](err); {
		case err == nil:
			b.objects.Clear()
			b.outage.over(b.log)
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case se != nil && se.Kind == stream.TooLarge:
			return fmt.Errorf("%w: %w", errNotCarried, se)
		case writes:
			if _, news := b.objects.Set(objectsGone, err.Error()); news {
				logevent.ObjectStoreAway.Error(b.log).Err(err).Stringer("waited", time.Since(began).Round(time.Second)).
					Msg("the object store takes no events: those too large for a message are rejected until it does")
			}
			return fmt.Errorf("%w: %w", errNotCarried, err)
		}
		if most > 0 {
			b.objects.Set(objectsAwaited, err.Error())
		}
		if err := b.cannotStore(ctx, err); err != nil {
			return err
		}
		if time.Since(began) < most {
			if err := wait.pause(ctx); err != nil {
				return err
			}
			continue
		}
		e, err := b.queueEntry(b.refreshed(), b.known.Last, nextOf(in))
		if err == nil {
			err = b.add(ctx, in, e)
		}
		if err != nil {
			return err
		}
		writes = true
	}
}
