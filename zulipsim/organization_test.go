package zulipsim

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
)

const declared = `{"notification_settings_null":true,"archived_channels":true,"individual_emoji_changes":true}`

// The events of what happens to people, channels and tables, and the state behind it.
func TestOrganization(t *testing.T) {
	for _, c := range []struct {
		level           int
		archived, emoji string
	}{{372, "stream/delete", "realm_emoji/update"}, {500, "stream/update", "realm_emoji/add"}} {
		t.Run(fmt.Sprint(c.level), func(t *testing.T) {
			world(t, &Server{FeatureLevel: c.level}, func(t *testing.T, cl *client) {
				s := cl.account.server
				queue := cl.register("client_capabilities", declared, "event_types",
					`["realm_user","stream","subscription","user_group","realm_emoji","realm_linkifiers","custom_profile_fields"]`)
				ada := s.Join("ada@example.com", "Ada")
				ada.Rename("Ada Lovelace")
				ada.SetActive(false)
				ch := s.CreateChannel("plans")
				ch.Rename("plans, old")
				ch.Archive()
				s.CreateChannel("plans")
				s.CreateGroup("team", "ada@example.com")
				s.AddEmoji("parrot")
				s.AddLinkifier("#([0-9]+)", "https://example.com/{id}")
				s.AddProfileField("Pet")
				want(t, "events", cl.peek(queue, -1).types(), "realm_user/add realm_user/update realm_user/update stream/create "+
					"subscription/add stream/update "+c.archived+" stream/create subscription/add "+
					"user_group/add "+c.emoji+" realm_linkifiers custom_profile_fields")

				a := cl.post("/register", "client_capabilities", declared, "fetch_event_types", `["realm_user","stream",`+
					`"realm_user_groups","realm_emoji","realm_linkifiers","custom_profile_fields"]`)
				var st struct {
					Users    []struct{ Full_name string } `json:"realm_users"`
					Inactive []struct{ Full_name string } `json:"realm_non_active_users"`
					Streams  []struct {
						Name        string
						Is_archived bool
					}
					Groups     []struct{ Name string }          `json:"realm_user_groups"`
					Emoji      map[string]struct{ Name string } `json:"realm_emoji"`
					Linkifiers []struct{ Pattern string }       `json:"realm_linkifiers"`
					Fields     []struct{ Name string }          `json:"custom_profile_fields"`
				}
				if err := json.Unmarshal([]byte(a.raw), &st); err != nil {
					t.Fatal(err)
				}
				want(t, "people", fmt.Sprint(st.Users, st.Inactive), "[{Bridge Bot}] [{Ada Lovelace}]")
				want(t, "channels", fmt.Sprint(st.Streams), "[{plans, old true} {plans false}]")
				want(t, "group", st.Groups[len(st.Groups)-1].Name, "team")
				want(t, "emoji", fmt.Sprint(st.Emoji), "map[1:{parrot}]")
				want(t, "linkifiers", fmt.Sprint(st.Linkifiers), "[{#([0-9]+)}]")
				want(t, "fields", fmt.Sprint(st.Fields), "[{Pet}]")
				last, state, ok := s.Registered(*a.QueueID)
				if !ok || last != a.Last || !strings.Contains(a.raw, string(state["realm_users"])) {
					t.Errorf("Registered: %d, %v, %s", last, ok, state["realm_users"])
				}
				// Who does not declare it knows of no archived channel.
				a = cl.post("/register", "fetch_event_types", `["stream"]`)
				if strings.Contains(a.raw, "plans, old") {
					t.Error("an archived channel in the state of a client that does not declare archived_channels")
				}
				if people := s.People(); len(people) != 2 || people[ada.ID].Active || people[ada.ID].Name != "Ada Lovelace" {
					t.Errorf("People: %v", people)
				}
				known := s.ChannelsOf("bridge-bot@example.com")
				if len(known) != 2 || known[ch.ID] != (KnownChannel{"plans, old", true}) {
					t.Errorf("ChannelsOf: %v", known)
				}
			})
		})
	}
}

// The state holds subscribers only where they are asked for.
func TestIncludeSubscribers(t *testing.T) {
	world(t, &Server{}, func(t *testing.T, c *client) {
		c.account.server.CreateChannel("plans")
		for _, params := range [][]string{nil, {"include_subscribers", "false"}, {"include_subscribers", "true"}} {
			a := c.post("/register", append([]string{"fetch_event_types", `["subscription"]`}, params...)...)
			want(t, fmt.Sprint(params), strings.Contains(a.raw, `"subscribers"`), slices.Contains(params, "true"))
		}
	})
}
