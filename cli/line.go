package cli

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"
)

// What is shown at most, in characters, of the place where a message stands and of what it says.
const (
	linePlace = 40
	lineText  = 90
)

// line shows one message of the stream on one line for a person: the subject, then what its type makes worth knowing. record is its
// Bridge-Record header, empty for Zulip's own events. The body comes from other people, so nothing in it is printed that could move
// the cursor or begin a new line; a body that is not as expected is shown as it is.
func line(subject, record string, body []byte) string {
	var where, what string
	if record != "" {
		what = "[" + record + "] " + string(body)
	} else {
		where, what = showEvent(body)
	}
	if what == "" {
		what = string(body)
	}
	if where != "" {
		where = printed(where, linePlace) + "  "
	}
	return fmt.Sprintf("%-27s %s%s", printed(subject, 200), where, printed(what, lineText))
}

// shownEvent has the fields of Zulip's events that people want to see (zulip/zulip, zerver/lib/event_types.py).
type shownEvent struct {
	ID      int64  `json:"id"`
	Type    string `json:"type"`
	Op      string `json:"op"`
	Message struct {
		ID        int64           `json:"id"`
		Type      string          `json:"type"`
		Recipient json.RawMessage `json:"display_recipient"` // a channel's name, or a list of people
		Subject   string          `json:"subject"`
		Sender    string          `json:"sender_full_name"`
		Content   string          `json:"content"`
	} `json:"message"`
	MessageID    int64   `json:"message_id"`
	MessageIDs   []int64 `json:"message_ids"`
	Messages     []int64 `json:"messages"`
	Content      *string `json:"content"`
	Subject      string  `json:"subject"`
	OrigSubject  string  `json:"orig_subject"`
	NewStreamID  int64   `json:"new_stream_id"`
	Topic        string  `json:"topic"`
	Flag         string  `json:"flag"`
	EmojiName    string  `json:"emoji_name"`
	EmojiCode    string  `json:"emoji_code"`
	ReactionType string  `json:"reaction_type"`
	Sender       struct {
		Email string `json:"email"`
	} `json:"sender"`
}

// showEvent says where an event happened, if that is worth a column, and what it says; nothing for those it does not know.
func showEvent(body []byte) (where, what string) {
	var e shownEvent
	if json.Unmarshal(body, &e) != nil {
		return "", ""
	}
	switch e.Type {
	case "message":
		m := &e.Message
		var channel string
		where = "direct"
		if json.Unmarshal(m.Recipient, &channel) == nil && channel != "" {
			where = "#" + channel + " > " + m.Subject
		}
		return where, m.Sender + ": " + m.Content
	case "update_message":
		switch {
		case e.Content != nil:
			return "", fmt.Sprintf("%d edited: %s", e.MessageID, *e.Content)
		case e.NewStreamID != 0:
			return "", fmt.Sprintf("%s moved to channel %d", count(e.MessageIDs), e.NewStreamID)
		case e.OrigSubject != "":
			return "", fmt.Sprintf("%s moved from %s to %s", count(e.MessageIDs), e.OrigSubject, e.Subject)
		}
		return "", fmt.Sprintf("%d rendered anew", e.MessageID)
	case "delete_message":
		if e.MessageID != 0 {
			return "", fmt.Sprintf("%d deleted", e.MessageID)
		}
		return "", count(e.MessageIDs) + " deleted"
	case "reaction":
		return "", fmt.Sprintf("%s%s on %d", sign(e.Op), emoji(&e), e.MessageID)
	case "update_message_flags":
		return "", fmt.Sprintf("%s%s on %s", sign(e.Op), e.Flag, count(e.Messages))
	case "typing":
		if e.Topic != "" {
			where = "in " + e.Topic
		}
		return where, e.Op + ": " + e.Sender.Email
	case "heartbeat":
		return "", "nothing new, still here"
	}
	return "", ""
}

func sign(op string) string {
	if op == "remove" {
		return "-"
	}
	return "+"
}

// count shows message ids: the id if it is one, else how many.
func count(ids []int64) string {
	if len(ids) == 1 {
		return strconv.FormatInt(ids[0], 10)
	}
	return fmt.Sprintf("%d messages", len(ids))
}

// emoji shows the character itself: its code is a list of code points in hexadecimal with '-' between.
func emoji(e *shownEvent) string {
	var s strings.Builder
	for part := range strings.SplitSeq(e.EmojiCode, "-") {
		r, err := strconv.ParseUint(part, 16, 32)
		if err != nil || e.ReactionType != "unicode_emoji" {
			return ":" + e.EmojiName + ":"
		}
		s.WriteRune(rune(r))
	}
	return s.String()
}

// printed makes text fit for one line of a terminal: blanks of all kinds become one blank, what does not print is left out, and what is
// longer than most characters is cut.
func printed(s string, most int) string {
	var b strings.Builder
	n, blank := 0, false
	for _, r := range s {
		switch {
		case unicode.IsSpace(r):
			if blank {
				continue
			}
			blank, r = true, ' '
		case !unicode.IsPrint(r):
			continue
		default:
			blank = false
		}
		if n == most {
			b.WriteString("…")
			break
		}
		b.WriteRune(r)
		n++
	}
	return b.String()
}
