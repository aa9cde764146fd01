package tail

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"html"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"zulip-nats/events"
)

// Pretty prints a line for each event as a person would say it. Everything that comes
// from other people goes through [Clean].
type Pretty struct {
	W io.Writer
	// Width is the columns that a line may take; 0: no line is cut.
	Width int
	// Color is for terminals that understand ANSI's colours.
	Color bool
	// Zone is where the times are told; nil: this machine's.
	Zone *time.Location
	// Subjects begins lines with the subject of the event instead of the time, for who
	// learns what is on the bus.
	Subjects bool

	day string // of the line before
}

// The styles of what is in a line.
const (
	styleNone   = ""
	styleDim    = "\x1b[2m"
	styleBold   = "\x1b[1m"
	stylePlace  = "\x1b[36m"
	styleDirect = "\x1b[35m"
	styleGap    = "\x1b[1;31m"
	styleOK     = "\x1b[32m"
	styleEnd    = "\x1b[0m"
)

// span is a piece of a line.
type span struct{ style, text string }

// most is how many characters of one text are looked at.
const most = 4000

// folded are the types that tell that somebody is there, and nothing that happened.
var folded = []string{"typing", "typing_edit_message", "presence", "heartbeat"}

// print prints one event; bad is why its body is not known.
func (p *Pretty) print(ctx context.Context, x *index, e *events.Event, body any, bad error) error {
	at := e.Stored
	if m, ok := body.(*events.Message); ok && m.Timestamp > 0 {
		at = m.Sent()
	}
	switch b := body.(type) {
	case *events.GapOpened:
		return p.across(styleGap, p.clock(b.Noticed)+" "+p.opened(b))
	case *events.GapClosed:
		style, text := closedText(b)
		return p.across(style, p.clock(b.Closed)+" "+text)
	}
	spans := p.say(ctx, x, e, body, bad)
	if p.Subjects {
		return p.line(append([]span{{styleDim, fmt.Sprintf("%-25s ", Clean(e.Subject, most))}}, spans...))
	}
	if day := at.In(p.zone()).Format("Monday, 2 January 2006"); day != p.day {
		p.day = day
		if err := p.across(styleDim, day); err != nil {
			return err
		}
	}
	return p.line(append([]span{{styleDim, p.clock(at) + " "}}, spans...))
}

// missing tells of so many messages that the stream does not have any more
// in front of an event: its limits took them, or they were erased.
func (p *Pretty) missing(n uint64) error {
	return p.across(styleGap, plural(int(n), "message is", "messages are")+" not in the stream any more")
}

func (p *Pretty) zone() *time.Location {
	if p.Zone != nil {
		return p.Zone
	}
	return time.Local
}

func (p *Pretty) clock(t time.Time) string { return t.In(p.zone()).Format(time.TimeOnly) }

// line prints spans, cut to the width.
func (p *Pretty) line(spans []span) error {
	var b strings.Builder
	left := p.Width
	for i, s := range spans {
		text := s.text
		if p.Width > 0 {
			if left <= 0 {
				break
			}
			rest := 0
			for _, r := range spans[i+1:] {
				rest += width(r.text)
			}
			// An ellipsis belongs to the last piece that is shown.
			if width(text) > left || width(text) == left && rest > 0 {
				text = cut(text+"……", left)
			}
			left -= width(text)
		}
		if p.Color && s.style != styleNone {
			text = s.style + text + styleEnd
		}
		b.WriteString(text)
	}
	_, err := io.WriteString(p.W, strings.TrimRight(b.String(), " ")+"\n")
	return err
}

// Across prints a line from side to side about what is no event, as good or bad news. It
// may be called while [Run] prints, if W takes whole lines from several goroutines.
func (p *Pretty) Across(good bool, text string) error {
	if good {
		return p.across(styleOK, text)
	}
	return p.across(styleGap, text)
}

// across prints a line from side to side.
func (p *Pretty) across(style, text string) error {
	columns := p.Width
	if columns <= 0 {
		columns = 80
	}
	text = Clean(text, most)
	if p.Width > 0 {
		text = cut(text, columns-6)
	}
	line := "── " + text + " " + strings.Repeat("─", max(columns-4-width(text), 2))
	return p.line([]span{{style, line}})
}

// nothing says whether an event tells of nothing that happened: Zulip rendered a message
// anew, or the bridge wrote its queue's record again, or a part of the state.
func nothing(body any) bool {
	switch b := body.(type) {
	case *events.UpdateMessage:
		return b.UserID == nil || b.RenderingOnly || !b.Edited() && !b.Moved()
	case *events.Queue:
		return b.Why == events.WhyKept
	case *events.StateBegin, *events.StatePiece:
		return true // the record that ends it tells of it
	case *events.Excluded:
		return true // who leaves types out does not want to see that each time
	}
	return false
}

// saying is what somebody did.
func saying(format string, v ...any) span {
	return span{styleNone, Clean(fmt.Sprintf(format, v...), most)}
}

// dim is a line of what matters less.
func dim(format string, v ...any) []span {
	return []span{{styleDim, Clean(fmt.Sprintf(format, v...), most)}}
}

// bold is who did it.
func bold(name string) span { return span{styleBold, Clean(name, 60)} }

// say is what happened, in words.
func (p *Pretty) say(ctx context.Context, x *index, e *events.Event, body any, bad error) []span {
	if bad != nil {
		return []span{{styleGap, Clean(strings.TrimSpace(e.Type+" "+e.Op), 80) + "  " + Clean(bad.Error(), most)}}
	}
	switch b := body.(type) {
	case *events.Message:
		s := p.where(x.of(b))
		if e.Origin == events.OriginBackfill {
			s = append(s, span{styleDim, "(read back) "})
		}
		return append(s, span{styleBold, Clean(b.Sender, 60) + ":"}, saying(" %s", plain(b)))
	case *events.Reaction:
		m := x.message(ctx, b.MessageID, e)
		said := " put " + emoji(b) + " on "
		if b.Op == "remove" {
			said = " took " + emoji(b) + " from "
		}
		name := cmp.Or(b.User.Name, x.who(b.UserID))
		return append(p.where(m), bold(name), saying("%s%s", said, m.words(b.MessageID)))
	case *events.UpdateMessage:
		return p.changed(ctx, x, e, b)
	case *events.DeleteMessage:
		ids := b.IDs()
		a := about{known: true, channel: x.channel(b.ChannelID), topic: b.Topic}
		if len(ids) > 0 && b.ChannelID == 0 {
			a = x.message(ctx, ids[0], e)
		}
		what := plural(len(ids), "message was", "messages were") + " deleted"
		if len(ids) == 1 {
			if m := x.message(ctx, ids[0], e); m.known {
				what = "a message of " + m.sender + " was deleted"
			}
		}
		return append(p.where(a), saying("%s", what))
	case *events.Typing:
		a := about{known: true, channel: x.channel(b.ChannelID), topic: b.Topic}
		if b.ChannelID == 0 {
			var names []string
			for _, r := range b.Recipients {
				names = append(names, x.who(r.ID))
			}
			a.direct = strings.Join(names, ", ")
		}
		verb := " is typing"
		if b.Op == "stop" {
			verb = " stopped typing"
		}
		return append(p.where(a), bold(x.who(b.Sender.ID)), saying("%s", verb))
	case *events.Presence:
		var said []string
		for client, word := range b.Clients {
			said = append(said, word.Status+" ("+client+")")
		}
		slices.Sort(said)
		return []span{bold(x.who(b.UserID)), saying(" is %s", strings.Join(said, ", "))}
	case *events.Subscription:
		return subscribed(x, b)
	case *events.Stream:
		switch names := strings.Join(x.hashed(b.Channels), ", "); b.Op {
		case "create":
			return dim("new: %s", names)
		case "delete":
			return dim("gone: %s", names)
		}
		return dim("#%s: %s is now %s", x.channel(b.ChannelID), b.Property, b.Value)
	case *events.RealmUser:
		name := cmp.Or(b.Person.Name, x.who(b.Person.ID))
		switch b.Op {
		case "add":
			return dim("%s joined the organization", name)
		case "remove":
			return dim("%s left the organization", name)
		}
		return dim("%s changed: %s", name, changes(e.Raw, "person"))
	case *events.UserGroup:
		return grouped(x, e, b)
	case *events.Queue:
		if b.Why == events.WhyKept { // no news: the same queue
			return dim("the record of the queue was written again: %s", b.QueueID)
		}
		return dim("a queue is followed (%s): %s", b.Why, b.QueueID)
	case *events.StateBegin:
		return dim("the state is written (%s), as of event %d of queue %s", strings.Join(b.Sections, ", "), b.EventID,
			b.QueueID)
	case *events.StatePiece:
		return dim("piece %d of %d of the state: %s", b.Piece, b.Of, b.Section)
	case *events.StateEnd:
		return dim("the state is whole, from #%d on", b.BeginSeq)
	case *events.Skipped:
		return dim("message %d is in the stream already", b.MessageID)
	case *events.Erased:
		if len(b.Seqs) == 0 { // no news: it is done
			return dim("what was deleted up to #%d is erased", b.DoneUpTo)
		}
		return dim("erased, since it was deleted: %s", plural(len(b.Messages), "message", "messages"))
	case *events.Excluded:
		return dim("events left out, as the bridge was told: %d", b.Count)
	case *events.Rejected:
		return []span{{styleGap, Clean("an event could not be carried: "+b.Reason, most)}}
	}
	switch e.Type {
	case "heartbeat":
		return dim("nothing new, still here")
	case "update_message_flags":
		var f struct {
			Op, Flag string
			Messages []int64
		}
		if json.Unmarshal(e.Raw, &f) == nil {
			word := "marked"
			if f.Op == "remove" {
				word = "no longer marked"
			}
			return dim("%s %s %s", plural(len(f.Messages), "message", "messages"), word, f.Flag)
		}
	case "user_status":
		var s struct {
			UserID int64   `json:"user_id"`
			Text   *string `json:"status_text"` // absent: that did not change
		}
		switch err := json.Unmarshal(e.Raw, &s); {
		case err != nil || s.Text == nil:
		case *s.Text == "":
			return dim("%s has no status any more", x.who(s.UserID))
		default:
			return dim("%s: %s", x.who(s.UserID), *s.Text)
		}
	}
	return dim("%s %s", strings.TrimSpace(e.Type+" "+e.Op), compact(e.Raw))
}

// where is the place of a message: a channel and a topic, or the people of a direct one.
func (p *Pretty) where(a about) []span {
	style, text := stylePlace, "#"+Clean(a.channel, 60)+" > "+Clean(a.topic, 80)
	switch {
	case !a.known, a.channel == "" && a.direct == "":
		return nil
	case a.direct != "":
		style, text = styleDirect, "direct to "+Clean(a.direct, 120)
	case a.topic == "":
		text = "#" + Clean(a.channel, 60) + " > general chat"
	}
	if p.Width > 0 {
		text = cut(text, max(p.Width*2/5, 12))
	}
	return []span{{style, text + "  "}}
}

// words say which message something is about.
func (m about) words(id int64) string {
	if !m.known {
		return "message " + strconv.FormatInt(id, 10)
	}
	return m.sender + ": " + m.text
}

// changed tells of an edit or a move.
func (p *Pretty) changed(ctx context.Context, x *index, e *events.Event, b *events.UpdateMessage) []span {
	if nothing(b) {
		return dim("message %d was rendered anew", b.MessageID)
	}
	a := about{known: true, channel: b.Channel, topic: b.OldTopic}
	if a.channel == "" && b.ChannelID != 0 {
		a.channel = x.channel(b.ChannelID)
	}
	if !b.Moved() || b.ChannelID == 0 {
		if m := x.message(ctx, b.MessageID, e); m.known {
			a = m
		} else if b.ChannelID != 0 {
			a.topic = "…"
		}
	}
	name := bold(x.who(*b.UserID))
	if !b.Moved() {
		said := saying(" edited: %s", *b.Content)
		if b.OldContent != "" {
			said = saying(" edited: %s (was: %s)", *b.Content, Clean(b.OldContent, textKept))
		}
		return append(p.where(a), name, said)
	}
	topic := b.OldTopic
	if b.Topic != nil {
		topic = *b.Topic
	}
	const resolved = "✔ " // zerver/lib/topic.py, RESOLVED_TOPIC_PREFIX
	switch {
	case b.NewChannelID == 0 && topic == resolved+b.OldTopic:
		return append(p.where(a), name, saying(" resolved the topic"))
	case b.NewChannelID == 0 && resolved+topic == b.OldTopic:
		return append(p.where(a), name, saying(" opened the topic again"))
	}
	to := "topic " + topic
	if b.NewChannelID != 0 {
		to = "#" + x.channel(b.NewChannelID) + " > " + topic
	}
	said := saying(" moved %s to %s", plural(max(len(b.MessageIDs), 1), "message", "messages"), to)
	if b.Edited() {
		said.text += Clean(", and edited: "+*b.Content, most)
	}
	return append(p.where(a), name, said)
}

// subscribed tells who is subscribed to what.
func subscribed(x *index, b *events.Subscription) []span {
	channels := x.hashed(b.Channels)
	for _, id := range b.ChannelIDs {
		channels = append(channels, "#"+x.channel(id))
	}
	in, some := strings.Join(channels, ", "), x.all(b.UserIDs)
	switch b.Op {
	case "add":
		return dim("this account is subscribed to %s", in)
	case "remove":
		return dim("this account is no longer subscribed to %s", in)
	case "peer_add":
		return dim("%s subscribed to %s", some, in)
	case "peer_remove":
		return dim("%s unsubscribed from %s", some, in)
	}
	return dim("#%s: %s is now %s for this account", x.channel(b.ChannelID), b.Property, b.Value)
}

// grouped tells of a change of groups.
func grouped(x *index, e *events.Event, b *events.UserGroup) []span {
	switch some := x.all(b.UserIDs); b.Op {
	case "add":
		if b.Group != nil {
			return dim("new group: %s", b.Group.Name)
		}
	case "remove":
		return dim("group %d is gone", b.GroupID)
	case "add_members":
		return dim("%s joined group %d", some, b.GroupID)
	case "remove_members":
		return dim("%s left group %d", some, b.GroupID)
	}
	return dim("group %d: %s %s", b.GroupID, b.Op, compact(e.Raw))
}

// opened is what a lost queue means.
func (p *Pretty) opened(b *events.GapOpened) string {
	text := "gap: " + b.Cause
	if !b.LastStored.IsZero() {
		text += "; nothing came since " + p.clock(b.LastStored)
	}
	return text
}

func closedText(b *events.GapClosed) (style, text string) {
	text = "gap closed: " + plural(b.Refilled, "message", "messages") + " read back"
	if b.NotRefilled == nil {
		return styleOK, text + ", edits and reactions are lost"
	}
	return styleGap, text + ", and not all: " + b.NotRefilled.Reason
}

// changes names the members of an object but for its id.
func changes(raw []byte, member string) string {
	var e map[string]json.RawMessage
	var in map[string]json.RawMessage
	if json.Unmarshal(raw, &e) != nil || json.Unmarshal(e[member], &in) != nil {
		return compact(raw)
	}
	var names []string
	for name := range in {
		if name != "user_id" && name != "email" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return strings.Join(names, ", ")
}

// compact is the beginning of a body that nobody has words for.
func compact(raw []byte) string { return string(raw[:min(len(raw), most)]) }

func plural(n int, one, several string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + several
}

// others are the people of a direct message but for its sender.
func others(m *events.Message) string {
	var names []string
	for _, p := range m.To.People {
		if p.ID != m.SenderID {
			names = append(names, p.Name)
		}
	}
	if len(names) == 0 {
		return "themselves"
	}
	return strings.Join(names, ", ")
}

var tags = regexp.MustCompile(`<[^>]*>`)

// plain is a message's text without HTML.
func plain(m *events.Message) string {
	if m.ContentType != "text/html" {
		return m.Content
	}
	return html.UnescapeString(tags.ReplaceAllString(m.Content, ""))
}

// emoji shows the character itself: its code is a list of code points in hexadecimal with
// '-' between.
func emoji(r *events.Reaction) string {
	var s strings.Builder
	for part := range strings.SplitSeq(r.Code, "-") {
		n, err := strconv.ParseUint(part, 16, 32)
		if err != nil || r.Kind != "unicode_emoji" {
			return ":" + r.Name + ":"
		}
		s.WriteRune(rune(n))
	}
	return s.String()
}
