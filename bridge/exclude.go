package bridge

import (
	"context"
	"encoding/json"
	"slices"

	"zulip-nats/events"
	"zulip-nats/poller"
	"zulip-nats/stream"
	"zulip-nats/subjects"
)

// What an operator does not want in the stream (--exclude-types, --no-direct-messages) is
// left out, and a record says so with event ids alone: the next poll acknowledges it, and
// a restart has to know. Where it cannot be known whether something is about direct
// messages, it is left out too.

// placesMost is of how many messages the place is remembered, the newest ones.
const placesMost = 1 << 16

// directPlace is the place of a direct message, where others have the id of a channel.
const directPlace = 0

// places is where the newest messages are, by their ids: the channel, or directPlace. Zulip
// does not say it of their reactions, flags and some edits.
type places struct {
	channel map[int64]int64
	order   []int64 // a ring of their ids, oldest first from next on
	next    int
	loaded  bool // what the stream holds is in it too
}

func (p *places) note(id, channel int64) {
	if p.channel == nil {
		p.channel = map[int64]int64{}
	}
	if _, known := p.channel[id]; !known {
		if len(p.order) < placesMost {
			p.order = append(p.order, id)
		} else {
			delete(p.channel, p.order[p.next])
			p.order[p.next] = id
			p.next = (p.next + 1) % placesMost
		}
	}
	p.channel[id] = channel
}

// inChannels says whether all of these messages are known to be in channels.
func (p *places) inChannels(ids []int64) bool {
	for _, id := range ids {
		if channel, known := p.channel[id]; !known || channel == directPlace {
			return false
		}
	}
	return len(ids) > 0
}

// Types of events that may be about direct messages. Those of ofMessages are about
// messages, and say which; those of ofTheAccount are about what the account itself wrote,
// saved or uploaded, for whomever, and do not say for whom in one place.
var (
	ofMessages = []string{"delete_message", "message", "reaction", "submessage", "typing", "typing_edit_message",
		"update_message", "update_message_flags", "url_embed_data"}
	ofTheAccount = []string{"attachment", "drafts", "navigation_view", "reminders", "scheduled_messages"}
)

// NeedMessages are the types of events that never say themselves whether they are about
// direct messages: where messages are not stored, Options.NoDirectMessages leaves all of
// them out.
var NeedMessages = []string{"reaction", "submessage", "update_message_flags"}

// directness is whether an event is about direct messages.
type directness uint8

const (
	notDirect   directness = iota
	mayBeDirect            // it is, or nobody knows
	lookItUp               // the messages that it is about say it
)

func directnessOf(ev *poller.Event) directness {
	switch {
	case slices.Contains(ofTheAccount, ev.Type), ev.Recipient == poller.RecipientDirect:
		return mayBeDirect
	case ev.Recipient == poller.RecipientChannel:
		return notDirect
	case ev.Type == "message":
		return mayBeDirect // one that does not say to whom
	case slices.Contains(ofMessages, ev.Type):
		return lookItUp
	case slices.Contains(poller.EventTypes(), ev.Type):
		return notDirect
	}
	return mayBeDirect // a type of a later Zulip
}

// leavesOut says whether anything is left out at all: then nothing is stored of which it
// is not known what it is.
func (b *Bridge) leavesOut() bool {
	o := &b.poller.Options
	return o.NoDirectMessages || len(o.ExcludeTypes) > 0
}

// excludes says whether an event is left out. Where that has to be looked up, loadPlaces
// comes before.
func (b *Bridge) excludes(ev *poller.Event) bool {
	o := &b.poller.Options
	if ev.Fault != "" { // it is rejected, without its bytes
		return false
	}
	if slices.Contains(o.ExcludeTypes, ev.Type) {
		return true
	}
	if !o.NoDirectMessages {
		return false
	}
	switch directnessOf(ev) {
	case notDirect:
		return false
	case mayBeDirect:
		return true
	}
	return !b.place().inChannels(messagesOf(ev))
}

// place is what is known of the places of messages.
func (b *Bridge) place() *places {
	if b.places == nil {
		b.places = new(places)
	}
	return b.places
}

// notePlace remembers where a message is, if that may be asked for.
func (b *Bridge) notePlace(id int64, kind poller.Recipient, channel int64) {
	if id <= 0 || !b.poller.Options.NoDirectMessages {
		return
	}
	if kind != poller.RecipientChannel {
		channel = directPlace
	} else if channel <= 0 {
		return
	}
	b.place().note(id, channel)
}

// messagesOf reads which messages an event is about; none where it does not say so.
func messagesOf(ev *poller.Event) []int64 {
	var body struct {
		ID      int64   `json:"message_id"`
		IDs     []int64 `json:"message_ids"`
		Flagged []int64 `json:"messages"`
	}
	if json.Unmarshal(ev.Raw, &body) != nil {
		return nil
	}
	ids := append(body.IDs, body.Flagged...)
	if body.ID > 0 {
		ids = append(ids, body.ID)
	}
	return ids
}

// loadPlaces reads where the newest messages are that the stream holds, if one of these
// events needs it: the headers say it. What a server lacks that lags behind counts as not
// known.
func (b *Bridge) loadPlaces(ctx context.Context, batch []poller.Event) error {
	if !b.poller.Options.NoDirectMessages || b.place().loaded || !slices.ContainsFunc(batch,
		func(ev poller.Event) bool { return ev.Fault == "" && directnessOf(&ev) == lookItUp }) {
		return nil
	}
	until, err := b.lastOn(ctx, b.messageSubject)
	if err != nil {
		return err
	}
	read := new(places)
	for back, all := uint64(firstLookBack), until == nil; !all && len(read.order) < placesMost; back *= lookBackGrows {
		all = back >= until.Seq
		from := stream.Start{Seq: max(1, until.Seq-min(until.Seq, back))}
		err := b.patiently(ctx, func() error {
			*read = places{}
			return b.stream.Scan(ctx, b.messageSubject, from, until.Seq, true, func(m *stream.Stored) error {
				id, ok := headerInt(m, events.HeaderMessageID)
				switch channel, named := headerInt(m, events.HeaderChannelID); {
				case !ok:
				case named:
					read.note(id, channel)
				case header(m, events.HeaderRecipientType) == events.RecipientDirect:
					read.note(id, directPlace)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	known := b.place() // of what came by since: it is newer
	for i := range known.order {
		id := known.order[(known.next+i)%len(known.order)]
		read.note(id, known.channel[id])
	}
	read.loaded = true
	b.places = read
	return nil
}

// exclusion is a run of events that are left out, and not yet recorded.
type exclusion struct {
	above, upTo int64
	count       int
}

func (x *exclusion) add(ev *poller.Event, at poller.Position) {
	if x.count == 0 {
		x.above = at.Last
	}
	x.upTo = ev.ID
	x.count++
}

// excluded makes the record of a run: ids of events and their number, and nothing of what
// was in them.
func (b *Bridge) excluded(x exclusion, at poller.Position) (entry, error) {
	e, err := b.recordEntry(events.RecordExcluded, subjects.Excluded, poller.Position{Queue: at.Queue, Last: x.upTo},
		events.Excluded{Record: events.RecordExcluded, Above: x.above, UpTo: x.upTo, Count: x.count},
		stream.Header{Key: events.HeaderEventID, Value: itoa(x.upTo)})
	e.left = x.count
	return e, err
}
