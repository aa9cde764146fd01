package stream_test

import (
	"bytes"
	"crypto/rand"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// object reads an object back as any NATS client does, which compares size and digest.
func object(t *testing.T, js jetstream.JetStream, bucket, name string) []byte {
	t.Helper()
	store, err := js.ObjectStore(t.Context(), bucket)
	if err != nil {
		t.Fatal(err)
	}
	data, err := store.GetBytes(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func random(n int) []byte {
	data := make([]byte, n)
	_, _ = rand.Read(data) // never fails
	return data
}

func TestObjects(t *testing.T) {
	for _, maxPayload := range []int32{1 << 20, 64 << 10} {
		srv := natstest.Start(t, func(o *server.Options) { o.MaxPayload = maxPayload })
		js := srv.JetStream()
		s := open(t, connect(t, srv.URL), stream.Config{QueueLife: 24 * time.Hour})
		if _, err := js.ObjectStore(t.Context(), "zulip_acme"); !errors.Is(err, jetstream.ErrBucketNotFound) {
			t.Fatalf("there is a bucket before the first object: %v", err)
		}
		const name = "acme/fb67bf8a-c031-47cc-84cf-ed80accacda8/57 é"
		for _, size := range []int{0, 1, 128 << 10, 128<<10 + 1, 1_200_000, 30_000_000} {
			data := random(size)
			if err := s.PutObject(t.Context(), name, data); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if got := object(t, js, "zulip_acme", name); !bytes.Equal(got, data) {
				t.Fatalf("%d bytes came back as %d others", size, len(got))
			}
		}
		bucket, err := js.Stream(t.Context(), "OBJ_zulip_acme")
		if err != nil {
			t.Fatal(err)
		}
		state, config := bucket.CachedInfo().State, bucket.CachedInfo().Config
		if state.Msgs > 30_000_000/60_000+2 {
			t.Errorf("the objects that were replaced left %d messages", state.Msgs)
		}
		if config.MaxAge != 7*24*time.Hour {
			t.Errorf("the bucket keeps objects for %v", config.MaxAge)
		}
		if got := contents(t, s); len(got) != 0 {
			t.Errorf("the stream holds %v", got)
		}
		if cursor := acked(t, s); cursor.Seq != 1 {
			t.Errorf("a write after it got %+v", cursor)
		}
	}
}

func TestObjectThatDoesNotFit(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream()
	store, err := js.CreateObjectStore(t.Context(), jetstream.ObjectStoreConfig{Bucket: "own", MaxBytes: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, connect(t, srv.URL), stream.Config{Bucket: "own"})
	if s.Bucket() != "own" {
		t.Errorf("the bucket is %q", s.Bucket())
	}
	err = s.PutObject(t.Context(), "too large for ever", random(1<<20))
	want(t, err, stream.TooLarge, "own", "1048576", "max_bytes")
	if err := s.PutObject(t.Context(), "first", random(800_000)); err != nil {
		t.Fatal(err)
	}
	err = s.PutObject(t.Context(), "second", random(800_000))
	want(t, err, stream.Full, "10077", "make room")
	stored, err := js.Stream(t.Context(), "OBJ_own")
	if err != nil {
		t.Fatal(err)
	}
	natstest.Eventually(t, "what did not fit to leave nothing behind", func() bool {
		info, err := stored.Info(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return info.State.Msgs == 800_000/(128<<10)+2
	})
	if err := store.Delete(t.Context(), "first"); err != nil {
		t.Fatal(err)
	}
	if err := s.PutObject(t.Context(), "second", random(800_000)); err != nil {
		t.Errorf("with room again: %v", err)
	}
}

// A large event may be stored already, with its stub: what does not fit the second time
// takes nothing away.
func TestObjectThatDoesNotFitKeepsTheOldOne(t *testing.T) {
	srv := natstest.Start(t)
	js := srv.JetStream()
	config := jetstream.ObjectStoreConfig{Bucket: "own", MaxBytes: 1 << 20}
	if _, err := js.CreateObjectStore(t.Context(), config); err != nil {
		t.Fatal(err)
	}
	s := open(t, connect(t, srv.URL), stream.Config{Bucket: "own"})
	data := random(600_000)
	if err := s.PutObject(t.Context(), "name", data); err != nil {
		t.Fatal(err)
	}
	want(t, s.PutObject(t.Context(), "name", data), stream.Full, "10077")
	if got := object(t, js, "own", "name"); !bytes.Equal(got, data) {
		t.Errorf("%d other bytes came back", len(got))
	}
}

// A chunk finds no leader, and those behind it do. To send it again would change the
// order of the bytes.
func TestObjectWithoutLeaderForAMoment(t *testing.T) {
	s, proxy, srv := behind(t, stream.Config{})
	other, data := srv.Conn(), random(800_000)
	if err := s.PutObject(t.Context(), "x", []byte("old")); err != nil {
		t.Fatal(err)
	}
	chunks := 0
	proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
		if len(p.Payload) != 128<<10 {
			return natstest.Pass
		}
		if chunks++; chunks != 2 {
			return natstest.Pass
		}
		_ = other.PublishMsg(&nats.Msg{Subject: p.Reply, Header: nats.Header{"Status": {"503"}}})
		return natstest.Lose
	})
	want(t, s.PutObject(t.Context(), "x", data), stream.Unavailable, "nobody answers")
	if got := object(t, srv.JetStream(), "zulip_acme", "x"); string(got) != "old" {
		t.Errorf("%d other bytes came back", len(got))
	}
	if err := s.PutObject(t.Context(), "x", data); err != nil {
		t.Fatal(err)
	}
	if got := object(t, srv.JetStream(), "zulip_acme", "x"); !bytes.Equal(got, data) {
		t.Errorf("%d other bytes came back", len(got))
	}
}

func TestObjectTroubles(t *testing.T) {
	t.Run("bucket name", func(t *testing.T) {
		srv := natstest.Start(t)
		s := open(t, connect(t, srv.URL), stream.Config{Bucket: "a.b"})
		if _, ok := errors.AsType[*stream.ConfigError](s.PutObject(t.Context(), "x", nil)); !ok {
			t.Error("a bucket with a dot is taken")
		}
	})
	t.Run("permissions", func(t *testing.T) {
		srv := natstest.Start(t, func(o *server.Options) {
			o.Users = []*server.User{{Username: "bridge", Password: "b", Permissions: &server.Permissions{
				Publish: &server.SubjectPermission{Deny: []string{"$O.>"}}}}}
		})
		nc := connectTo(t, stream.ConnectConfig{URL: srv.URL, User: "bridge", Password: "b"})
		s := open(t, nc, stream.Config{AckTimeout: time.Hour})
		want(t, s.PutObject(t.Context(), "x", random(10)), stream.Forbidden, "$O.zulip_acme.C.")
	})
	t.Run("disconnect", func(t *testing.T) {
		s, proxy, srv := behind(t, stream.Config{})
		chunks := 0
		proxy.OnPublish(func(p natstest.Publish) natstest.Fate {
			if len(p.Payload) == 128<<10 {
				if chunks++; chunks == 10 {
					return natstest.Cut
				}
			}
			return natstest.Pass
		})
		data := random(3_000_000)
		want(t, s.PutObject(t.Context(), "x", data), stream.Unclear, "object store zulip_acme")
		var err error
		natstest.Eventually(t, "another attempt to succeed", func() bool {
			err = s.PutObject(t.Context(), "x", data)
			return err == nil
		})
		if got := object(t, srv.JetStream(), "zulip_acme", "x"); !bytes.Equal(got, data) {
			t.Error("other bytes came back")
		}
	})
}

// An account that wants a limit of size for each stream gets that of the realm's stream.
func TestObjectStoreThatNeedsALimit(t *testing.T) {
	srv := natstest.Start(t)
	err := srv.Server().GlobalAccount().UpdateJetStreamLimits(map[string]server.JetStreamAccountLimits{
		"": {MaxMemory: 1 << 30, MaxStore: 1 << 30, MaxStreams: -1, MaxConsumers: -1, MaxBytesRequired: true}})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, connect(t, srv.URL), stream.Config{New: stream.NewStream{MaxBytes: 8 << 20}})
	if err := s.PutObject(t.Context(), "name", []byte("data")); err != nil {
		t.Fatal(err)
	}
	store, err := srv.JetStream().ObjectStore(t.Context(), s.Bucket())
	if err != nil {
		t.Fatal(err)
	}
	if data, err := store.GetBytes(t.Context(), "name"); err != nil || string(data) != "data" {
		t.Errorf("the object is %q, %v", data, err)
	}
}
