// Package tail shows a person, or a program behind a pipe, what a realm's stream holds:
// what comes from now on, or since a time, a sequence, or the last so many events. It is
// what `zulip-nats tail`, `run --show` and `demo` print.
//
// It only reads, and nobody notices: one consumer in the server's memory, without
// acknowledgements, deleted at the end. It holds a few thousand messages at most, so a
// stream of millions takes no more memory than a short one.
//
// tail.go says what is shown, source.go reads the stream, index.go looks up what a
// reaction or an edit is about, pretty.go and json.go print, text.go makes text of others
// fit for a terminal.
package tail

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"zulip-nats/events"
	"zulip-nats/subjects"
)

// Options say what is shown, and how.
type Options struct {
	JetStream jetstream.JetStream
	// Stream is the stream's name, Realm whose messages in it are shown.
	Stream, Realm string

	// Types are those to show, as Zulip spells them; "bridge" is the bridge's own records.
	// None is all; [Pretty] leaves out what only tells that somebody is there, then.
	Types []string
	// Channel shows only what is about this channel: a name, whatever its case, or an id, "5"
	// or "#5". What carries no channel, as reactions, belongs to that of its message, and in
	// a stream by place besides to that of its subject.
	Channel string

	// At most one of Since, From and Last says where it begins: at a time, a sequence, or
	// with the last so many events of those that are shown. Else it begins with what comes
	// next.
	Since time.Time
	From  uint64
	Last  int
	// NoFollow ends where the stream ended at the start.
	NoFollow bool
	// Original shows events with the time between that lay between when they were stored.
	Original bool

	// Show prints them: a *[Pretty], a [JSON] or a [Raw].
	Show Printer

	// Began is called once, when it is known where it begins. Seen is called with each
	// event that is read, shown or not, Shown behind each that was wanted and is shown. All
	// may be nil.
	Began       func()
	Seen, Shown func(*events.Event)
}

// Printer is a way to show events: *[Pretty], [JSON] or [Raw].
type Printer interface {
	// print prints one event. body is what its bytes say, bad why that is not known; the
	// index knows of others.
	print(ctx context.Context, x *index, e *events.Event, body any, bad error) error
}

// viewer is one run.
type viewer struct {
	Options
	source *source
	index  index
	pretty *Pretty // nil if it is for programs

	first time.Time // when the first event was shown, with Original, and when it was stored
	zero  time.Time
}

// Run shows events until ctx ends, which is no error, or, with NoFollow, until the end of
// the stream.
func Run(ctx context.Context, o Options) error {
	v := viewer{Options: o}
	v.pretty, _ = o.Show.(*Pretty)
	realm, err := subjects.ParseRealm(o.Realm)
	if err != nil {
		return err
	}
	ask, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	stream, err := o.JetStream.Stream(ask, o.Stream)
	if err != nil {
		return stopped(ctx, err)
	}
	info := stream.CachedInfo()
	byPlace, err := v.byPlace(ask, stream, realm)
	if err != nil {
		return stopped(ctx, err)
	}
	v.source = &source{js: o.JetStream, stream: o.Stream, realm: o.Realm, created: info.Created,
		filters: v.filters(realm, info.Config.Subjects, byPlace)}
	v.source.anew = func() error {
		v.source.filters = v.filters(realm, info.Config.Subjects, false) // of the other layout, perhaps
		return v.anew()
	}
	v.index = index{js: o.JetStream, stream: stream, realm: realm, sought: seek(o.Channel)}
	fresh := v.index

	end := info.State.LastSeq
	from := place{seq: end + 1}
	switch {
	case o.Last > 0:
		if from.seq, err = v.lastOf(ctx, info.State.FirstSeq, end); err != nil {
			return stopped(ctx, err)
		}
		v.index = fresh // what came later is not known yet
	case o.From > 0:
		from.seq = o.From
	case !o.Since.IsZero():
		from = place{time: o.Since}
	}
	if o.Began != nil {
		o.Began()
	}
	until := uint64(0)
	if o.NoFollow {
		if until = end; from.seq > end {
			return nil
		}
	}
	return stopped(ctx, v.source.read(ctx, from, until, func(e *events.Event) error { return v.show(ctx, e) }))
}

// stopped makes no error of what a stop was the reason for.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// byPlace says whether a stream is known to have subjects by place, where that makes a
// difference. By its records it would be known too, but not everybody may read single
// messages.
func (v *viewer) byPlace(ctx context.Context, stream jetstream.Stream, realm subjects.Realm) (bool, error) {
	if len(v.Types) == 0 {
		return false, nil
	}
	has := func(filter string) (bool, error) {
		info, err := stream.Info(ctx, jetstream.WithSubjectFilter(filter))
		return err == nil && len(info.State.Subjects) > 0, err
	}
	// Few subjects, and heartbeats are there. Others may publish on such a one too.
	placed, err := has(strings.TrimSuffix(realm.All(), ">") + "*." + subjects.Nowhere.String())
	if err != nil || !placed {
		return false, err
	}
	byType, err := has(realm.By(subjects.ByType).Events()[0])
	return !byType, err
}

// filters are those to ask the server for; none if the whole stream is wanted. Where it is
// not known whether the stream is by place, those of types are for both layouts: what is
// in the other one is nothing. Where it is, there is one filter: with several, and the
// many subjects of such a stream, nats-server takes ten times as long for each message and
// more, and the whole stream comes sooner than that.
func (v *viewer) filters(realm subjects.Realm, has []string, byPlace bool) (all []string) {
	if len(v.Types) == 0 {
		if len(has) == 1 && has[0] == realm.All() {
			return nil
		}
		return []string{realm.All()}
	}
	layouts := []subjects.Layout{subjects.ByType, subjects.ByPlace}
	if byPlace {
		layouts = layouts[1:]
	}
	for _, t := range v.Types {
		if t == "bridge" {
			all = append(all, realm.Records())
			continue
		}
		for _, l := range layouts {
			if filter := realm.By(l).Type(t); filter != "" { // else no event of it has a subject
				all = append(all, filter)
			}
		}
	}
	// A gap is shown to people whatever they asked for.
	if v.pretty != nil && !slices.Contains(v.Types, "bridge") {
		all = append(all, realm.Record(subjects.Gap))
	}
	if byPlace && len(all) > 1 {
		return []string{realm.All()}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// firstWindow is how far the search for the last events looks back at first, in
// sequences. It goes on in front of that, four times as far each time.
const firstWindow = 1024

// lastOf finds the sequence from which on the last so many events are that are shown. It
// reads each message once, and keeps its sequence; the index learns on the way.
func (v *viewer) lastOf(ctx context.Context, first, end uint64) (uint64, error) {
	first = max(first, 1) // a stream that never held a message has 0
	var seqs []uint64     // newest window first, rising in each
	size := uint64(firstWindow)
	for high := end; high >= first; {
		low := first
		if high-low >= size {
			low = high - size + 1
		}
		var found []uint64
		err := v.source.read(ctx, place{seq: low}, high, func(e *events.Event) error {
			if !v.typed(e) {
				return nil
			}
			body, _ := v.body(ctx, e)
			if v.wanted(ctx, e, body) && !(v.pretty != nil && isGap(e)) {
				if found = append(found, e.Seq); len(found) > v.Last {
					found = found[1:]
				}
			}
			v.index.learn(body)
			return nil
		})
		if err != nil {
			return 0, err
		}
		if missing := v.Last - len(seqs); len(found) >= missing {
			return found[len(found)-missing], nil
		}
		seqs = append(seqs, found...)
		if low == first {
			break
		}
		high, size = low-1, size*4
	}
	return first, nil
}

func isGap(e *events.Event) bool {
	return e.Record == events.RecordGapOpened || e.Record == events.RecordGapClosed
}

// typed says whether an event is of the types that are shown, or a gap where that is
// shown besides. By place others may come too.
func (v *viewer) typed(e *events.Event) bool {
	return len(v.Types) == 0 || slices.Contains(v.Types, e.Type) || v.pretty != nil && isGap(e)
}

// body fetches what is not in the message, and parses it.
func (v *viewer) body(ctx context.Context, e *events.Event) (any, error) {
	err := events.Resolve(ctx, v.JetStream, e)
	var body any
	if err == nil {
		body, err = e.Body()
	}
	return body, err
}

// show shows one event, if it is wanted.
func (v *viewer) show(ctx context.Context, e *events.Event) error {
	if !v.typed(e) {
		return nil
	}
	body, bad := v.body(ctx, e)
	if ctx.Err() != nil {
		return nil
	}
	if v.Seen != nil {
		v.Seen(e)
	}
	wanted := v.wanted(ctx, e, body)
	prints := wanted || v.pretty != nil && isGap(e)
	missing := v.pretty != nil && e.Missing > 0
	if (prints || missing) && v.Original && !v.pause(ctx, e.Stored) {
		return nil
	}
	if missing {
		if err := v.pretty.missing(e.Missing); err != nil {
			return err
		}
	}
	if prints {
		if err := v.Show.print(ctx, &v.index, e, body, bad); err != nil {
			return err
		}
	}
	if wanted && v.Shown != nil {
		v.Shown(e)
	}
	v.index.learn(body)
	return nil
}

// anew tells people that the stream is another one now.
func (v *viewer) anew() error {
	if v.pretty == nil {
		return nil
	}
	return v.pretty.across(styleGap, "the stream was deleted and made anew: from its start")
}

// pause waits until an event's time has come, with Original; false if ctx ends before.
func (v *viewer) pause(ctx context.Context, at time.Time) bool {
	if v.zero.IsZero() {
		v.first, v.zero = time.Now(), at
	}
	wait := time.Until(v.first.Add(at.Sub(v.zero)))
	if wait <= 0 {
		return true
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// wanted says whether an event is to be shown.
func (v *viewer) wanted(ctx context.Context, e *events.Event, body any) bool {
	if len(v.Types) > 0 {
		if !slices.Contains(v.Types, e.Type) {
			return false
		}
	} else if v.pretty != nil && (slices.Contains(folded, e.Type) || nothing(body)) {
		return false
	}
	return v.Channel == "" || v.inChannel(ctx, e, body)
}

// inChannel says whether an event is about the channel.
func (v *viewer) inChannel(ctx context.Context, e *events.Event, body any) bool {
	is := v.index.sought.is
	of := func(id int64) bool { return v.index.sought.ids[id] }
	in := func(m about) bool { return is(m.channel) || of(m.id) }
	if of(e.ChannelID) || e.Record == "" && v.index.seeks(ctx, int64(subjects.PlaceOf(e.Subject))) {
		return true
	}
	switch b := body.(type) {
	case *events.Message:
		return !b.Direct() && (is(b.To.Channel) || of(b.ChannelID))
	case *events.Reaction:
		return in(v.index.message(ctx, b.MessageID, e))
	case *events.UpdateMessage:
		return is(b.Channel) || of(b.ChannelID) || of(b.NewChannelID) ||
			b.ChannelID == 0 && in(v.index.message(ctx, b.MessageID, e))
	case *events.DeleteMessage:
		if of(b.ChannelID) {
			return true
		}
		if ids := b.IDs(); len(ids) > 0 {
			return in(v.index.message(ctx, ids[0], e))
		}
	case *events.Typing:
		return of(b.ChannelID)
	case *events.Subscription:
		return of(b.ChannelID) || slices.ContainsFunc(b.ChannelIDs, of) || slices.ContainsFunc(b.Channels,
			func(c events.Channel) bool { return is(c.Name) || of(c.ID) })
	case *events.Stream:
		return of(b.ChannelID) || is(b.Name) || is(renamed(b)) || slices.ContainsFunc(b.Channels,
			func(c events.Channel) bool { return is(c.Name) || of(c.ID) })
	}
	return false
}
