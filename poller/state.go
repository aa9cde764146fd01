package poller

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Section is a part of the state that register can return: what there is now of people,
// say, as Zulip's own clients have it before the first event.
type Section struct {
	Name string // as people name it, fit for a subject
	// Members are those of the answer. Each is a list, or an object with an id for each
	// key.
	Members []string
	// EventTypes are the types of events that change it. Without them it would be a
	// picture that nothing carries on.
	EventTypes []string

	word string // of fetch_event_types (zerver/lib/events.py, fetch_initial_state_data)
}

// sections are all that can be asked for.
var sections = []Section{
	{"users", []string{"realm_users", "realm_non_active_users", "cross_realm_bots"}, []string{"realm_user"},
		"realm_user"},
	{"channels", []string{"streams"}, []string{"stream"}, "stream"},
	{"subscriptions", []string{"subscriptions", "unsubscribed", "never_subscribed"},
		[]string{"subscription", "stream"}, "subscription"},
	{"groups", []string{"realm_user_groups"}, []string{"user_group"}, "realm_user_groups"},
	{"emoji", []string{"realm_emoji"}, []string{"realm_emoji"}, "realm_emoji"},
	{"linkifiers", []string{"realm_linkifiers"}, []string{"realm_linkifiers"}, "realm_linkifiers"},
	{"profile-fields", []string{"custom_profile_fields"}, []string{"custom_profile_fields"}, "custom_profile_fields"},
}

// Sections are all that can be asked for, in the order in which they are stored.
func Sections() []Section { return slices.Clone(sections) }

// SectionsOf are the sections with these names, each once, in the order of [Sections]. The
// error says which name is none.
func SectionsOf(names []string) ([]Section, error) {
	var known []string
	for _, s := range sections {
		known = append(known, s.Name)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return nil, fmt.Errorf("%.60q is no section of the state: write some of %s", n, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(Sections(), func(s Section) bool { return !slices.Contains(names, s.Name) }), nil
}

// State is what register said of the sections that were asked for.
type State struct {
	// Last is the last event of the new queue that is in the state already, -1 if none is:
	// those up to it must not be applied to it, those behind it must. They all come by the
	// queue, which is polled from -1.
	Last     int64
	Sections []SectionState
}

// SectionState is what register said of one section.
type SectionState struct {
	Name    string
	Members []StateMember // none if the server does not know the section
}

// StateMember is one member of the answer, taken apart. The values are the bytes that Zulip
// sent.
type StateMember struct {
	Name   string
	Object bool // the elements are members of an object, "key":value; else elements of a list
	// Elements are in the order of the answer.
	Elements []json.RawMessage
}

// stateOf takes the sections out of an answer. A member that the server does not send, an
// old one say, is left out.
func stateOf(members map[string]json.RawMessage, last int64, wanted []Section) (*State, error) {
	st := &State{Last: last}
	for _, s := range wanted {
		section := SectionState{Name: s.Name}
		for _, name := range s.Members {
			raw, sent := members[name]
			if !sent || bytes.Equal(raw, []byte("null")) {
				continue
			}
			m, err := elementsOf(name, raw)
			if err != nil {
				return nil, err
			}
			section.Members = append(section.Members, m)
		}
		st.Sections = append(st.Sections, section)
	}
	return st, nil
}

// elementsOf takes a list or an object apart.
func elementsOf(name string, raw json.RawMessage) (m StateMember, err error) {
	m.Name = name
	d := json.NewDecoder(bytes.NewReader(raw))
	begin, err := d.Token()
	if err != nil {
		return m, fmt.Errorf("the member %s of the state: %w", name, err)
	}
	if m.Object = begin == json.Delim('{'); !m.Object && begin != json.Delim('[') {
		return m, fmt.Errorf("the member %s of the state is neither a list nor an object", name)
	}
	for d.More() {
		var element json.RawMessage
		if m.Object {
			key, err := d.Token()
			if err != nil {
				return m, fmt.Errorf("the member %s of the state: %w", name, err)
			}
			text, _ := key.(string) // the decoder takes nothing else here
			element = append([]byte(jsonText(text)), ':')
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return m, fmt.Errorf("the member %s of the state: %w", name, err)
		}
		m.Elements = append(m.Elements, append(element, value...))
	}
	return m, nil
}
