package stream_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/stream"
	"zulip-nats/stream/natstest"
)

// onDisk gives the files below a folder that have a text in them.
func onDisk(t testing.TB, dir, text string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // the server writes all the time
			return nil
		}
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(text)) {
			files = append(files, path)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// secret is a text that no compression makes shorter.
func secret(n int) string { return fmt.Sprintf("%x", random(16)) + fmt.Sprint(n) }

// patiently does again what a busy machine has not answered in time: to erase makes the
// server write a block of 8 MiB anew, and to read what it has compressed takes one apart.
func patiently(t testing.TB, what string, f func() error) error {
	t.Helper()
	var err error
	natstest.Eventually(t, "an answer in time to "+what, func() bool {
		err = f()
		return kindOf(err) != stream.Unavailable && kindOf(err) != stream.Unclear
	})
	return err
}

// TestErase: what is erased is in no file of the server any more, in the newest block and
// in older ones, which are compressed; what stands beside it is.
func TestErase(t *testing.T) {
	for _, compression := range []jetstream.StoreCompression{jetstream.NoCompression, jetstream.S2Compression} {
		t.Run(compression.String(), func(t *testing.T) {
			srv := natstest.Start(t)
			natstest.CreateStream(t, srv.JetStream(), jetstream.StreamConfig{Name: "ZULIP_acme",
				Subjects: []string{filter}, Storage: jetstream.FileStorage, Compression: compression,
				AllowAtomicPublish: true, AllowBatchPublish: true})
			s := open(t, connect(t, srv.URL), stream.Config{})
			var texts []string
			cursor := last(t, s)
			for n := range 12 { // more than a block of 8 MiB
				text := secret(n)
				texts = append(texts, text)
				msgs := []stream.Message{{Subject: "zulip.acme.message", Data: []byte(text)},
					{Subject: "zulip.acme.message", Data: random(900_000)}}
				var err error
				if cursor, err = s.Append(t.Context(), cursor, msgs); err != nil {
					t.Fatal(err)
				}
			}
			for n, text := range texts {
				if len(onDisk(t, srv.StoreDir(), text)) == 0 {
					t.Fatalf("text %d is in no file before it is erased: nothing would be shown", n)
				}
			}
			for n := range texts {
				if n%2 == 0 {
					continue
				}
				for range 2 { // the second time it is not there
					err := patiently(t, "erasing", func() error { return s.Erase(t.Context(), s.Epoch(), uint64(2*n+1)) })
					if err != nil {
						t.Fatal(err)
					}
				}
			}
			look := func(when string) {
				t.Helper()
				for n, text := range texts {
					files := onDisk(t, srv.StoreDir(), text)
					if erased := n%2 == 1; erased != (len(files) == 0) {
						t.Errorf("%s: text %d, erased %v, is in the files %v", when, n, erased, files)
					}
					var m *stream.Stored
					err := patiently(t, "reading", func() (err error) {
						m, err = s.At(t.Context(), uint64(2*n+1))
						return err
					})
					if err != nil || (m == nil) != (n%2 == 1) {
						t.Errorf("%s: the stream has message %d: %v, %v", when, n, m != nil, err)
					}
				}
			}
			look("erased")
			if at := last(t, s); at.Seq != 24 {
				t.Errorf("the newest message is %d", at.Seq)
			}
			if _, err := s.Append(t.Context(), cursor, messages(1, 3)); err != nil {
				t.Errorf("a write behind what was known before: %v", err)
			}
			srv.Restart()
			natstest.Eventually(t, "the server to be back", func() bool {
				_, _, err := s.Last(t.Context())
				return err == nil
			})
			look("started again")
		})
	}
}

func TestEraseReplicated(t *testing.T) {
	cluster := natstest.StartCluster(t, 3)
	s := open(t, connect(t, cluster.URL()), stream.Config{New: stream.NewStream{Replicas: 3}})
	cursor := acked(t, s)
	if _, err := s.Append(t.Context(), cursor, messages(1, 3)); err != nil {
		t.Fatal(err)
	}
	if err := s.CheckErase(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{2, 2, 99} {
		if err := patiently(t, "erasing", func() error { return s.Erase(t.Context(), s.Epoch(), seq) }); err != nil {
			t.Errorf("message %d: %v", seq, err)
		}
	}
	if m, err := s.At(t.Context(), 2); err != nil || m != nil {
		t.Errorf("the leader has message 2: %v, %v", m, err)
	}
	// A consumer may read a replica that has not heard of it yet.
	natstest.Eventually(t, "the stream without what was erased", func() bool {
		return fmt.Sprint(contents(t, s)) == "[0 2 3]"
	})
	if _, err := s.Append(t.Context(), last(t, s), messages(4, 1)); err != nil {
		t.Errorf("the stream takes no more: %v", err)
	}
}

func TestEraseObject(t *testing.T) {
	srv := natstest.Start(t)
	s := open(t, connect(t, srv.URL), stream.Config{Erase: true})
	if err := s.EraseObject(t.Context(), s.Epoch(), "acme/q/1"); err != nil {
		t.Errorf("without an object store: %v", err)
	}
	if data, err := s.Object(t.Context(), "acme/q/1"); err != nil || data != nil {
		t.Errorf("without an object store there is an object: %d bytes, %v", len(data), err)
	}
	one, two, before := secret(1), secret(2), secret(3)
	large := func(text string) []byte { return []byte(strings.Repeat(text+"\n", 20_000)) }
	for name, text := range map[string]string{"acme/q/1": before, "acme/q/2": two} {
		if err := patiently(t, "storing", func() error { return s.PutObject(t.Context(), name, large(text)) }); err != nil {
			t.Fatal(err)
		}
	}
	err := patiently(t, "storing", func() error { return s.PutObject(t.Context(), "acme/q/1", large(one)) })
	if err != nil {
		t.Fatal(err)
	}
	if files := onDisk(t, srv.StoreDir(), before); len(files) > 0 {
		t.Errorf("what was replaced is in %v", files)
	}
	if data, err := s.Object(t.Context(), "acme/q/1"); err != nil || !bytes.Equal(data, large(one)) {
		t.Errorf("the object has %d bytes, %v", len(data), err)
	}
	if len(onDisk(t, srv.StoreDir(), one)) == 0 {
		t.Fatal("the object is in no file: nothing would be shown")
	}
	for range 2 {
		err := patiently(t, "erasing", func() error { return s.EraseObject(t.Context(), s.Epoch(), "acme/q/1") })
		if err != nil {
			t.Fatal(err)
		}
	}
	if files := onDisk(t, srv.StoreDir(), one); len(files) > 0 {
		t.Errorf("the text of an object that was erased is in %v", files)
	}
	if data, err := s.Object(t.Context(), "acme/q/1"); err != nil || data != nil {
		t.Errorf("the object has %d bytes, %v", len(data), err)
	}
	if got := object(t, srv.JetStream(), "zulip_acme", "acme/q/2"); !bytes.Equal(got, large(two)) {
		t.Errorf("the other object has %d bytes", len(got))
	}
	if n := count(t, srv.JetStream(), "OBJ_zulip_acme"); n != (len(large(two))+128<<10-1)/(128<<10)+1 {
		t.Errorf("%d messages are left", n)
	}
}

// TestEraseOnAnotherConnection: a sequence may be another message's there.
func TestEraseOnAnotherConnection(t *testing.T) {
	s, proxy, _ := behind(t, stream.Config{})
	acked(t, s)
	epoch := s.Epoch()
	proxy.CutAll()
	natstest.Eventually(t, "the connection to come back", func() bool {
		_, _, err := s.Last(t.Context())
		return err == nil && s.Epoch() != epoch
	})
	want(t, s.Erase(t.Context(), epoch, 1), stream.Refused, "read again")
	if got := contents(t, s); len(got) != 1 {
		t.Errorf("the stream holds %v", got)
	}
}

func TestEraseRefused(t *testing.T) {
	t.Run("deny_delete", func(t *testing.T) {
		srv := natstest.Start(t)
		natstest.CreateStream(t, srv.JetStream(), jetstream.StreamConfig{Name: "ZULIP_acme", Subjects: []string{filter},
			DenyDelete: true})
		s := open(t, connect(t, srv.URL), stream.Config{})
		acked(t, s)
		want(t, s.Erase(t.Context(), s.Epoch(), 1), stream.Wrong, "10057", "deny_delete")
		if err := s.Erase(t.Context(), s.Epoch(), 99); err != nil {
			t.Errorf("what is not there: %v", err)
		}
		refused(t, s, "ZULIP_acme", "deny_delete", "--erase-deleted")
	})
	t.Run("deny_delete of the object store", func(t *testing.T) {
		srv := natstest.Start(t)
		s := open(t, connect(t, srv.URL), stream.Config{})
		if err := s.CheckErase(t.Context()); err != nil {
			t.Error(err)
		}
		natstest.CreateStream(t, srv.JetStream(), jetstream.StreamConfig{Name: "OBJ_zulip_acme",
			Subjects: []string{"$O.zulip_acme.>"}, DenyDelete: true, AllowRollup: true})
		refused(t, s, "OBJ_zulip_acme", "deny_delete")
	})
	for _, name := range []string{"ZULIP_acme", "OBJ_zulip_acme"} {
		t.Run("no right to "+name, func(t *testing.T) {
			srv := natstest.Start(t, func(o *server.Options) {
				o.Users = []*server.User{{Username: "bridge", Password: "b", Permissions: &server.Permissions{
					Publish: &server.SubjectPermission{Deny: []string{"$JS.API.STREAM.MSG.DELETE." + name}}}}}
			})
			s := open(t, connectTo(t, stream.ConnectConfig{URL: srv.URL, User: "bridge", Password: "b"}), stream.Config{})
			acked(t, s)
			if err := s.PutObject(t.Context(), "acme/q/1", random(10)); err != nil {
				t.Fatal(err)
			}
			refused(t, s, name, "STREAM.MSG.DELETE."+name, "--erase-deleted")
			err := s.Erase(t.Context(), s.Epoch(), 1)
			if name != "ZULIP_acme" {
				err = s.EraseObject(t.Context(), s.Epoch(), "acme/q/1")
			}
			want(t, err, stream.Forbidden, "STREAM.MSG.DELETE."+name)
		})
	}
}

// refused fails the test unless CheckErase names the stream, and has these words.
func refused(t *testing.T, s *stream.Stream, name string, words ...string) {
	t.Helper()
	err := s.CheckErase(t.Context())
	bad, ok := errors.AsType[*stream.ConfigError](err)
	if !ok || bad.Stream != name {
		t.Fatalf("CheckErase says %v, want a ConfigError about %s", err, name)
	}
	for _, word := range words {
		if !strings.Contains(bad.Error(), word) {
			t.Errorf("%q does not say %q", bad.Error(), word)
		}
	}
}
