package fleet_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"zulip-nats/fleet"
	"zulip-nats/fleet/model"
	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// TestContract holds the model of the bucket to a real one.
func TestContract(t *testing.T) {
	t.Parallel()
	srv := natstest.Start(t)
	real, err := fleet.NewBucket(config(t, srv.URL, "one", 0))
	if err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]fleet.Store{"NATS": real, "model": new(model.Bucket).Client(t.Context(), "one", nil)} {
		t.Run(name, func(t *testing.T) { contract(t, s) })
	}
}

func contract(t *testing.T, s fleet.Store) {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	refused := func(revision uint64, err error) {
		t.Helper()
		if e, ok := errors.AsType[*stream.Error](err); !ok || e.Kind != stream.Refused {
			t.Errorf("revision %d, and it is not refused: %v", revision, err)
		}
	}
	for range 2 {
		must(s.Ensure(ctx, 1))
	}
	one, err := s.Write(ctx, "realm.a.claim", []byte("one"), 0, 0)
	must(err)
	refused(s.Write(ctx, "realm.a.claim", []byte("again"), 0, 0))
	refused(s.Write(ctx, "realm.b.claim", []byte("x"), one, 0))
	refused(s.Delete(ctx, "realm.b.claim", one))
	two, err := s.Write(ctx, "realm.a.claim", []byte("two"), one, 0)
	must(err)
	gone, err := s.Write(ctx, "realm.gone.claim", []byte("gone"), 0, 0)
	must(err)
	gone, err = s.Delete(ctx, "realm.gone.claim", gone)
	must(err)
	if !(one < two && two < gone) {
		t.Errorf("the revisions are %d, %d, %d", one, two, gone)
	}
	for key, want := range map[string]fleet.Entry{"realm.a.claim": {Revision: two, Value: []byte("two")},
		"realm.gone.claim": {Revision: gone}, "realm.never.claim": {}} {
		e, err := s.Read(ctx, key)
		must(err)
		if e.Revision != want.Revision || string(e.Value) != string(want.Value) || (e.Value == nil) != (want.Value == nil) {
			t.Errorf("%s holds %+v, want %+v", key, e, want)
		}
	}

	watching, unwatch := context.WithCancel(ctx)
	updates, err := s.Watch(watching)
	must(err)
	next := func(key, value string, revision uint64) uint64 {
		t.Helper()
		u := <-updates
		if u.Err != nil || u.Key != key || string(u.Value) != value || revision != 0 && u.Revision != revision ||
			(u.Value == nil) != (value == "") {
			t.Errorf("the watch brings %s = %q at %d, %v; want %s = %q at %d", u.Key, u.Value, u.Revision, u.Err, key, value,
				revision)
		}
		return u.Revision
	}
	brief, err := s.Write(ctx, "instance.x.alive", []byte("brief"), 0, time.Second)
	must(err)
	next("realm.a.claim", "two", two)
	next("realm.gone.claim", "", gone)
	next("instance.x.alive", "brief", brief)
	longer, err := s.Write(ctx, "instance.x.alive", []byte("longer"), brief, 2*time.Second)
	must(err)
	next("instance.x.alive", "longer", longer)
	began := time.Now()
	expired := next("instance.x.alive", "", 0)
	if expired <= longer {
		t.Errorf("expired at revision %d, written at %d", expired, longer)
	}
	if lived := time.Since(began); lived < 1500*time.Millisecond {
		t.Errorf("it lived for %v", lived)
	}
	refused(s.Write(ctx, "instance.x.alive", []byte("late"), longer, time.Second))
	again, err := s.Write(ctx, "instance.x.alive", []byte("again"), expired, 0)
	must(err)
	next("instance.x.alive", "again", again)
	back, err := s.Write(ctx, "realm.gone.claim", []byte("back"), gone, 0)
	must(err)
	next("realm.gone.claim", "back", back)
	unwatch()
	for range updates { // it ends
	}
}
