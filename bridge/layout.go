package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"zulip-nats/events"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// A stream keeps the layout of its subjects from its beginning on: who reads one would miss
// what is in another.

// FitsLayout says whether a stream can take a realm's events in that layout: the newest
// record of a queue says which one the stream has or, where that is gone, the events do. A
// [*ConfigError] says that it cannot, any other error that the stream cannot be read now.
func FitsLayout(ctx context.Context, s Stream, realm subjects.Realm) error {
	info, err := s.Info(ctx)
	if err == nil {
		err = fitsLimit(realm, info)
	}
	if err != nil {
		return err
	}
	m, err := newestOurs(ctx, s, realm.Record(subjects.Queue))
	if err != nil {
		return err
	}
	if r := decode[events.Queue](m); r != nil {
		return sameLayout(r, realm)
	}
	return laidOut(ctx, s, realm)
}

// sameLayout refuses the record of a queue with another layout than the realm's. Where it
// names none, it is by type: there was no other.
func sameLayout(r *events.Queue, realm subjects.Realm) error {
	if has := cmp.Or(r.Subjects, subjects.ByType.String()); has != realm.Layout().String() {
		return otherLayout(realm, has)
	}
	return nil
}

// fitsLimit refuses a limit for each subject by place: by type it takes the oldest messages
// of all, by place it would leave holes.
func fitsLimit(realm subjects.Realm, info stream.Info) error {
	if info.MaxPerSubject <= 0 || realm.Layout() != subjects.ByPlace {
		return nil
	}
	return &ConfigError{fmt.Sprintf("the stream of %s keeps %d messages of a subject (max_msgs_per_subject), and with "+
		"--subjects by-place that takes messages of one channel from among those of others, which a refill would bring "+
		"again: set max_msgs_per_subject to -1 (nats stream edit) and limit the stream by age or size", realm.All(),
		info.MaxPerSubject)}
}

// laidOut refuses a stream that holds events of ours in another layout than the realm's.
func laidOut(ctx context.Context, s Stream, realm subjects.Realm) error {
	other := subjects.ByPlace
	if realm.Layout() == subjects.ByPlace {
		other = subjects.ByType
	}
	for _, filter := range realm.By(other).Events() {
		m, err := newestOurs(ctx, s, filter)
		if err != nil {
			return err
		}
		if m != nil {
			return otherLayout(realm, other.String())
		}
	}
	return nil
}

// laidOut is [laidOut] with patience.
func (b *Bridge) laidOut(ctx context.Context) error {
	return b.misfit(ctx, func() error { return laidOut(ctx, b.stream, b.realm) })
}

// misfit asks with patience what no waiting heals.
func (b *Bridge) misfit(ctx context.Context, ask func() error) error {
	var bad *ConfigError
	err := b.patiently(ctx, func() error {
		if err := ask(); !errors.As(err, &bad) {
			return err
		}
		return nil
	})
	if bad != nil {
		return bad
	}
	return err
}

// layoutName is a layout as a queue's record has it.
func layoutName(r subjects.Realm) string {
	if l := r.Layout(); l != subjects.ByType {
		return l.String()
	}
	return ""
}

// otherLayout says which layout the stream has, and what to do.
func otherLayout(realm subjects.Realm, has string) error {
	return &ConfigError{fmt.Sprintf("the stream has the events of %s %s, and --subjects says %s: a stream keeps its layout, "+
		"since who reads one would miss what is in the other. Go on with --subjects %s. Or begin another stream: run an "+
		"instance with --subjects %s and another name for the realm (--realm) beside that of this stream, let the services "+
		"follow it, then start the one of this stream with --subjects %s and --delete-queue, and stop it for good", realm, has,
		realm.Layout(), has, realm.Layout(), has)}
}
