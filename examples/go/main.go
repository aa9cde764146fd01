// Search is a search index over what people write in a Zulip organization, made of the
// stream that zulip-nats keeps:
//
//	NATS_URL=nats://127.0.0.1:4222 go run ./examples/go --realm acme --http 127.0.0.1:8090
//	curl 'http://127.0.0.1:8090/search?q=release+notes'
//
// Whoever reaches that address reads what the bridge's account reads.
//
// All that it knows, and up to which sequence of the stream it knows it, stands in one
// file, which is replaced whole. So nothing is acknowledged: killed at any moment, it
// reads again what the file does not have yet, and without the file it reads all that
// the stream holds.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
)

func main() {
	url := cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL)
	realm := flag.String("realm", "acme", "the `realm` to search")
	file := flag.String("file", "search.json", "the `file` that keeps the index")
	address := flag.String("http", "127.0.0.1:8090", "the `address` to answer at")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, url, *realm, *file, *address); err != nil {
		log.Fatal("search: ", err)
	}
}

func run(ctx context.Context, url, realm, file, address string) error {
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.Name("search"), nats.CustomInboxPrefix("_INBOX_search"))
	if err != nil {
		return fmt.Errorf("no connection to the NATS server of NATS_URL: %w", err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	stream, err := js.Stream(ctx, "ZULIP_"+realm)
	if err != nil {
		return fmt.Errorf("the stream ZULIP_%s: %w", realm, err)
	}
	x, err := load(file, stream.CachedInfo().Created)
	if err != nil {
		return err
	}

	if first := stream.CachedInfo().State.FirstSeq; x.Done > 0 && first > x.Done+1 {
		x.miss(first-1, fmt.Sprintf("what the stream's limits took before it was read: sequences %d to %d", x.Done+1,
			first-1))
	}

	mux := http.NewServeMux()
	mux.HandleFunc("GET /search", x.serve)
	server := &http.Server{Addr: address, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 2)
	go func() { failed <- server.ListenAndServe() }()
	defer server.Close()
	go func() { failed <- x.follow(ctx, js, stream, realm) }()

	save := time.NewTicker(5 * time.Second) // a kill costs reading so much again
	defer save.Stop()
	for {
		select {
		case err := <-failed:
			return errors.Join(err, x.save(file))
		case <-save.C:
			if err := x.save(file); err != nil {
				return err
			}
		}
	}
}

// follow reads the stream from behind what the index has, for as long as ctx lives.
func (x *index) follow(ctx context.Context, js jetstream.JetStream, stream jetstream.Stream, realm string) error {
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{
		DeliverPolicy:  jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:    x.Done + 1,
		FilterSubjects: filters(realm, "message", "update_message", "delete_message"),
	})
	if err != nil {
		return err
	}
	reader := events.Reader{Consumer: consumer, JetStream: js, Done: x.Done}
	for event, err := range reader.All(ctx) {
		switch {
		case errors.Is(err, jetstream.ErrObjectNotFound):
			// The object store keeps a large event for a while only.
			x.miss(event.Seq, fmt.Sprintf("the message %d: it was large, and is gone", event.MessageID))
			continue
		case err != nil:
			return err // it may pass: whoever starts us again lets us go on from the file
		}
		body, err := event.Body()
		if err != nil {
			x.miss(event.Seq, err.Error()) // it is not what we know as such an event, and will not be
			continue
		}
		x.take(event.Seq, body)
	}
	return nil
}

// filters are those for types of events, in a stream by type and in one by place, and for
// gaps.
func filters(realm string, types ...string) []string {
	all := []string{"zulip." + realm + ".bridge.gap"}
	for _, typ := range types {
		all = append(all, "zulip."+realm+"."+typ, "zulip."+realm+"."+typ+".>")
	}
	return all
}

// index is all that is known.
type index struct {
	mu sync.Mutex

	Stream   time.Time        // when the stream was made: another one counts anew
	Done     uint64           // the sequence up to which it is known
	Entries  map[int64]entry  // by message id
	Channels map[int64]string // names of channels, as messages have told them
	Missing  []string         // what is not known, for people

	words map[string]map[int64]bool // which messages have a word; made of the entries
}

// entry is a message in its newest state.
type entry struct {
	ID      int64     `json:"id"`
	Channel string    `json:"channel,omitempty"` // empty: a direct message
	Topic   string    `json:"topic,omitempty"`
	Sender  string    `json:"sender"`
	Sent    time.Time `json:"sent"`
	Text    string    `json:"text"`
	Old     bool      `json:"may_have_changed,omitempty"` // it was edited or moved in a gap
}

// take does what one event says, and notes that it is done: a file that is written
// between two events has both or neither.
func (x *index) take(seq uint64, body any) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.Done = seq
	switch b := body.(type) {
	case *events.Message: // live or from history: it was said
		x.Channels[b.ChannelID] = b.To.Channel
		x.put(entry{ID: b.ID, Channel: b.To.Channel, Topic: b.Topic, Sender: b.Sender, Sent: b.Sent(), Text: b.Content})
	case *events.UpdateMessage:
		for _, id := range append(b.MessageIDs, b.MessageID) {
			e, known := x.Entries[id]
			if !known {
				continue // it is from before the stream's time
			}
			if b.Edited() && id == b.MessageID {
				e.Text, e.Old = *b.Content, false
			}
			if b.Topic != nil {
				e.Topic = *b.Topic
			}
			if b.NewChannelID != 0 {
				e.Channel = x.Channels[b.NewChannelID]
			}
			x.put(e)
		}
	case *events.DeleteMessage:
		for _, id := range b.IDs() {
			x.remove(id)
		}
	case *events.GapClosed:
		// Zulip's history has brought the messages. What was edited, moved and deleted
		// meanwhile it does not tell, only of some messages that they were changed.
		x.Missing = append(x.Missing, fmt.Sprintf("edits and deletions from %s to %s", b.Since.Format(time.RFC3339),
			b.Closed.Format(time.RFC3339)))
		for _, id := range b.Changed {
			if e, known := x.Entries[id]; known {
				e.Old = true
				x.Entries[id] = e
			}
		}
		if n := b.NotRefilled; n != nil {
			x.Missing = append(x.Missing, fmt.Sprintf("messages with ids above %d, up to %d: %s", n.AboveID, n.UpToID,
				n.Reason))
		}
	}
}

// miss notes that something up to a sequence was there, and is not known.
func (x *index) miss(seq uint64, why string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.Done = seq
	x.Missing = append(x.Missing, why)
}

// put puts a message in, in place of an older state of it.
func (x *index) put(e entry) {
	x.remove(e.ID)
	x.Entries[e.ID] = e
	for _, word := range words(e.Channel, e.Topic, e.Sender, e.Text) {
		if x.words[word] == nil {
			x.words[word] = map[int64]bool{}
		}
		x.words[word][e.ID] = true
	}
}

// remove takes a message out.
func (x *index) remove(id int64) {
	e := x.Entries[id]
	for _, word := range words(e.Channel, e.Topic, e.Sender, e.Text) {
		delete(x.words[word], id)
	}
	delete(x.Entries, id)
}

// words are the words of some texts, in small letters.
func words(texts ...string) []string {
	return strings.FieldsFunc(strings.ToLower(strings.Join(texts, " ")), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsNumber(r)
	})
}

// answer is what a search finds, newest first, and what it cannot know.
type answer struct {
	UpTo    uint64   `json:"up_to_sequence"`
	Missing []string `json:"missing,omitempty"`
	Found   []entry  `json:"found"`
}

// serve answers GET /search?q=: the messages that have all of the words.
func (x *index) serve(w http.ResponseWriter, r *http.Request) {
	asked := words(r.FormValue("q"))
	x.mu.Lock()
	defer x.mu.Unlock()
	a := answer{UpTo: x.Done, Missing: x.Missing, Found: []entry{}}
	if len(asked) > 0 {
		for id := range x.words[asked[0]] {
			if !slices.ContainsFunc(asked, func(word string) bool { return !x.words[word][id] }) {
				a.Found = append(a.Found, x.Entries[id])
			}
		}
	}
	slices.SortFunc(a.Found, func(a, b entry) int { return cmp.Compare(b.ID, a.ID) })
	a.Found = a.Found[:min(len(a.Found), 50)]
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(a)
}

// load reads the file. Without one, and for another stream of that name than the file is
// about, it is an empty index, which reads from the start.
func load(file string, made time.Time) (*index, error) {
	x := &index{Stream: made, Entries: map[int64]entry{}, Channels: map[int64]string{}, words: map[string]map[int64]bool{}}
	text, err := os.ReadFile(file)
	if errors.Is(err, os.ErrNotExist) {
		return x, nil
	}
	if err != nil {
		return nil, err
	}
	var kept index
	if err := json.Unmarshal(text, &kept); err != nil {
		return nil, fmt.Errorf("%s is no index: %w; without that file, all is read again", file, err)
	}
	if !kept.Stream.Equal(made) {
		return x, nil
	}
	x.Done, x.Channels, x.Missing = kept.Done, kept.Channels, kept.Missing
	for _, e := range kept.Entries {
		x.put(e)
	}
	return x, nil
}

// save replaces the file, whole and at once.
func (x *index) save(file string) error {
	x.mu.Lock()
	text, err := json.Marshal(x)
	x.mu.Unlock()
	if err != nil {
		return err
	}
	if err := os.WriteFile(file+".new", text, 0o600); err != nil {
		return err
	}
	return os.Rename(file+".new", file)
}
