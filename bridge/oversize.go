package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"zulip-nats/stream"
)

// errNeverFits says that the object store can never take an event: it has a limit of its own.
var errNeverFits = errors.New("larger than what the object store takes")

// claimCheck puts a body that is too large for a message in the object store and gives the stub that stands for it: no body, and headers
// that say where it is, how large, and its digest. The object comes first, so a stub never points at nothing; a crash in between leaves an
// object without a stub, which the bucket's age clears. The name is the same each time, so a retry replaces it by the same bytes.
func (b *Bridge) claimCheck(ctx context.Context, e entry, name string) (entry, error) {
	name = fmt.Sprintf("%s/%s/%s", b.cfg.Realm, e.after.Queue, name)
	for wait := newRetry(); ; {
		err := b.stream.PutObject(ctx, name, e.msg.Data)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return entry{}, context.Cause(ctx)
		}
		if se, ok := errors.AsType[*stream.Error](err); ok && se.Kind == stream.TooLarge {
			return entry{}, fmt.Errorf("%w: %w", errNeverFits, err)
		}
		if err := b.cannotStore(ctx, err); err != nil {
			return entry{}, err
		}
		if err := wait.pause(ctx); err != nil {
			return entry{}, err
		}
	}
	digest := sha256.Sum256(e.msg.Data)
	b.log.Info().Str("object", name).Int("bytes", len(e.msg.Data)).Msg("an event is larger than a message may be: it is in the object store")
	e.msg.Headers = append(e.msg.Headers[:len(e.msg.Headers):len(e.msg.Headers)],
		stream.Header{Key: HeaderObject, Value: name},
		stream.Header{Key: HeaderSize, Value: itoa(int64(len(e.msg.Data)))},
		stream.Header{Key: HeaderDigest, Value: "SHA-256=" + hex.EncodeToString(digest[:])})
	e.msg.Data = nil
	return e, nil
}
