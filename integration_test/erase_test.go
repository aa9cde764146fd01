package integration_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"zulip-nats/events"
	"zulip-nats/integration_test/harness"
	"zulip-nats/stream/natstest"
	"zulip-nats/zulipsim"
)

// filesWith are the files below a folder that have a text in them.
func filesWith(t testing.TB, dir, text string) (files []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			var data []byte
			if data, err = os.ReadFile(path); bytes.Contains(data, []byte(text)) {
				files = append(files, path)
			}
		}
		if errors.Is(err, fs.ErrNotExist) { // the server writes all the time
			return nil
		}
		return err
	})
	harness.Must(t, err)
	return files
}

// TestEraseDeleted: the program, a nats-server of its own process with its files, and a
// Zulip. Of a message that is deleted no text is left in any file, in the stream and in the
// object store, whoever kills the program on the way; all else is there.
func TestEraseDeleted(t *testing.T) {
	srv := natstest.StartProcess(t, "")
	w := newWorld(t, srv.URL, func(z *zulipsim.Server) { z.MaxMessageLength = 3 << 20 })
	args := []string{"--erase-deleted", "--no-lease"}
	p := w.run(args...)
	w.polling()
	send := func(text string) int64 {
		return w.zulip.SendMessage(zulipsim.Message{Channel: "general", Topic: "t", Content: text})
	}
	const stays, first, edited, large = "5a11e2d0c6 stays", "8c1f03b27e first", "d94b7a6610 edited", "0fe2c58d31 large"
	send(stays)
	a := send(first)
	text := edited
	w.zulip.EditMessage(a, zulipsim.Edit{Content: &text})
	b := send(strings.Repeat(large+" ", 100_000))
	w.zulip.React(a, w.bot.Email, "tada")
	w.settle()
	for _, text := range []string{stays, first, edited, large} {
		if len(filesWith(t, srv.StoreDir(), text)) == 0 {
			t.Fatalf("%q is in no file before it is deleted: nothing would be shown", text)
		}
	}
	w.zulip.DeleteMessages(a, b)
	w.settle()
	p.Kill()
	p = w.run(args...)
	for _, text := range []string{first, edited, large} {
		harness.Eventually(t, "no file to have "+text, func() bool { return len(filesWith(t, srv.StoreDir(), text)) == 0 })
	}
	w.polling()
	send("behind it")
	w.settle()
	all, err := harness.ReadStream(w.js, w.stream)
	harness.Must(t, err)
	kinds, done := map[string]int{}, false
	for i := range all {
		m := &all[i]
		kinds[strings.TrimPrefix(m.Subject, "zulip."+w.realm+".")]++
		done = done || m.Record() == events.RecordErased && !bytes.Contains(m.Data, []byte("sequences"))
	}
	if kinds["message"] != 2 || kinds["update_message"] != 0 || kinds["delete_message"] != 1 || kinds["reaction"] != 1 || !done {
		t.Errorf("the stream has %v", kinds)
	}
	if len(filesWith(t, srv.StoreDir(), stays)) == 0 {
		t.Error("the message that stays is gone")
	}
	if _, err := p.Stop(); err != nil {
		t.Error(err)
	}
	srv.Stop()
	for _, text := range []string{first, edited, large} {
		if files := filesWith(t, srv.StoreDir(), text); len(files) > 0 {
			t.Errorf("%q is in %v", text, files)
		}
	}
}
