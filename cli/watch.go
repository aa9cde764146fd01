package cli

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
	"github.com/rs/zerolog"
)

const (
	// settleTime is how long files are left alone after the last change: whoever writes
	// them may not be done.
	settleTime = 300 * time.Millisecond
	// missedTime is how soon folders are looked at again that cannot be watched now.
	missedTime = 2 * time.Second
)

// watched are files whose changes the system tells of. It watches their folders, since a
// file that is put in the place of another, as editors do it, is seen only so; and those of
// what they are links to.
type watched struct {
	watcher *fsnotify.Watcher // nil: the system tells of nothing
	folders []string
	names   []string
	seen    map[string][sha256.Size]byte
	settled *time.Timer // when to look
}

// watch begins to watch files. Where the system does not tell of changes, there is SIGHUP.
func watch(files []string, log zerolog.Logger) *watched {
	w := &watched{settled: time.NewTimer(time.Hour)}
	var err error
	if w.watcher, err = fsnotify.NewWatcher(); err != nil {
		w.watcher = nil
		log.Debug().Err(err).Msg("the system does not tell of changes of files; SIGHUP reads them again")
	}
	w.settled.Stop()
	w.look(files)
	return w
}

func (w *watched) close() {
	w.settled.Stop()
	if w.watcher != nil {
		_ = w.watcher.Close() // there is nothing to lose
	}
}

// events and errors are those of the folders.
func (w *watched) events() <-chan fsnotify.Event {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Events
}

// errors tells that events were lost: there were more than the system remembers.
func (w *watched) errors() <-chan error {
	if w.watcher == nil {
		return nil
	}
	return w.watcher.Errors
}

// concerns says whether an event may be about one of the files: it has its name, is a link
// by which Kubernetes exchanges all files of a folder at once (..data), or is the folder
// itself.
func (w *watched) concerns(e fsnotify.Event) bool {
	name := filepath.Base(e.Name)
	return strings.HasPrefix(name, "..") || slices.Contains(w.names, name) || slices.Contains(w.folders, e.Name)
}

// look watches the folders of these files from now on, and then says whether the content
// of any file is another than at the look before. One that was not there to be looked at
// then is no change. What is no plain file, as a pipe, can be read only once.
func (w *watched) look(files []string) (changed bool) {
	w.names, w.folders = nil, nil
	for _, file := range files {
		w.names = append(w.names, filepath.Base(file))
		w.folders = append(w.folders, filepath.Dir(file))
		if to, err := filepath.EvalSymlinks(file); err == nil && to != file {
			w.names = append(w.names, filepath.Base(to))
			w.folders = append(w.folders, filepath.Dir(to))
		}
	}
	slices.Sort(w.folders)
	w.folders = slices.Compact(w.folders)
	w.follow()

	seen := map[string][sha256.Size]byte{}
	for _, file := range files {
		seen[file] = digest(file)
		if was, known := w.seen[file]; known && was != seen[file] {
			changed = true
		}
	}
	w.seen = seen
	return changed
}

// follow watches the folders, and no others.
func (w *watched) follow() {
	if w.watcher == nil {
		return
	}
	missed := false
	watching := w.watcher.WatchList()
	for _, folder := range w.folders {
		if !slices.Contains(watching, folder) && w.watcher.Add(folder) != nil {
			missed = true // there may be none now, or too many are watched on this machine
		}
	}
	for _, folder := range watching {
		if !slices.Contains(w.folders, folder) {
			_ = w.watcher.Remove(folder) // it may be gone
		}
	}
	if missed {
		w.settled.Reset(missedTime)
	}
}

// digest is that of a file's content, as far as anybody reads it, and of its mode, which
// others' eyes depend on; zero for what is no plain file.
func digest(file string) (sum [sha256.Size]byte) {
	if !isPlain(file) {
		return sum
	}
	f, err := os.Open(file)
	if err != nil {
		return sum // it is told by whoever needs the file
	}
	defer f.Close()
	h := sha256.New()
	if info, err := f.Stat(); err == nil {
		_, _ = fmt.Fprintln(h, info.Mode()) // which does not fail
	}
	_, _ = io.Copy(h, io.LimitReader(f, mostConfig+1)) // what breaks off is another content
	h.Sum(sum[:0])
	return sum
}

// isPlain says whether a path is that of a plain file, or of none.
func isPlain(path string) bool {
	info, err := os.Stat(path)
	return err != nil || info.Mode().IsRegular()
}
