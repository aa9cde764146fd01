package fleet

import (
	"context"
	"errors"

	"github.com/nats-io/nats.go"

	"zulip-nats/stream"
)

// Look says whether the bucket is there, and whether the realm could be shared: by an
// [*UnsupportedError] if not, and by another error if that did not come out. It makes
// nothing and claims nothing.
func Look(ctx context.Context, cfg Config, realm string) (there bool, err error) {
	api, err := cfg.complete()
	if err == nil {
		err = checkToken("realm", realm)
	}
	if err != nil {
		return false, err
	}
	b := newBucket(cfg, api)
	answer, err := b.ask(ctx, &nats.Msg{Subject: b.api + "STREAM.INFO." + b.stream})
	switch {
	case err == nil:
		there, err = true, b.judge(answer)
	case kindOf(err) == stream.Forbidden: // as for Acquire: reading and writing show
		there, err = true, nil
	case kindOf(err) == stream.Gone:
		if _, level := cfg.Conn.ConnectedServerJetStream(); level < 1 && cfg.Domain+cfg.APIPrefix == "" {
			return false, &UnsupportedError{errors.New("the life of keys takes nats-server 2.11 or newer")}
		}
		err = cfg.Conn.Probe(ctx, what+": creating bucket "+cfg.Bucket, b.api+"STREAM.CREATE."+b.stream)
	}
	if err == nil && there {
		_, err = b.Read(ctx, claimKey(realm))
	}
	for _, subject := range []string{b.ours + instanceKey("check"), b.ours + claimKey(realm),
		b.api + "CONSUMER.CREATE." + b.stream + ".zulip-nats-check",
		b.api + "CONSUMER.MSG.NEXT." + b.stream + ".zulip-nats-check"} {
		if err == nil {
			err = cfg.Conn.Probe(ctx, what, subject)
		}
	}
	if unsupported(err) {
		err = asUnsupported(err)
	}
	return there, err
}
