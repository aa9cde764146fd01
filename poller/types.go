package poller

import (
	_ "embed"
	"slices"
	"strings"
	"sync"

	"github.com/xrash/smetrics"
)

//go:embed event-types.tsv
var eventTypes string

// EventTypes returns the types of events that the Zulip servers known so far send,
// sorted. New ones come without notice.
var EventTypes = sync.OnceValue(func() []string {
	var names []string
	for line := range strings.Lines(eventTypes) {
		if name, _, ok := strings.Cut(line, "\t"); ok && !strings.HasPrefix(line, "#") {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
})

// notTypes are words of Zulip's that look like types of events and are none, with the
// type that is meant: people say channel where the wire says stream, and some words of
// fetch_event_types differ (zerver/lib/events.py, fetch_initial_state_data).
var notTypes = map[string]string{
	"channel": "stream", "channels": "stream", "direct_message": "message", "private_message": "message",
	"message_edit": "update_message", "edit_message": "update_message", "realm_user_groups": "user_group",
	"starred_messages": "update_message_flags", "user": "realm_user", "users": "realm_user",
}

// ValidType reports whether name can be a type of events at all: lower-case letters,
// digits and underscores, as all of Zulip's are (zerver/lib/event_types.py).
func ValidType(name string) bool {
	return name != "" && !strings.ContainsFunc(name, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_'
	})
}

// NearestType returns the known type that name is, or is likely to mean; known tells
// which of the two. It ignores case, and takes - and blanks for _.
func NearestType(name string) (nearest string, known bool) {
	if slices.Contains(EventTypes(), name) {
		return name, true
	}
	name = strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' || r == '.' {
			return '_'
		}
		return r
	}, strings.ToLower(name))
	if meant := notTypes[name]; meant != "" {
		return meant, false
	}
	best := -1.0
	for _, t := range EventTypes() {
		like := smetrics.JaroWinkler(name, t, 0.7, 4) // the measure that suggests flags and commands too
		if name != "" && strings.Contains(t, name) || len(t) > 4 && strings.Contains(name, t) {
			like++
		}
		if like > best {
			best, nearest = like, t
		}
	}
	return nearest, false
}
