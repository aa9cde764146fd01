package zulipsim

import (
	"context"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// The files in testdata are HTTP exchanges with a real Zulip 10.2, one a line, with the
// time of each. The test below lives through each of them again in a bubble whose clock
// is set to the day of the recording: the same requests at the same times, the same
// causes, and then compares what the simulator answered, and when, with what Zulip did.
//
// What the recording shows without showing its cause (messages whose sending was not
// kept, polls that were only counted) is put in by the scenario. What is not compared is
// said in the tables notImitated, shapeOnly and notCompared; besides, pages of HTML are
// not compared word by word, and of numbers that time moves (resets, waits, timestamps)
// it is asked only that they are as near as time was.

// notImitated names the exchanges whose answer is not compared, by file and line. What
// they caused is driven all the same.
var notImitated = map[string]map[int]string{
	"corner-cases": {
		17: "delete_topic is no endpoint of the simulator", 18: "delete_topic is no endpoint of the simulator",
		31: "PATCH /bots is no endpoint of the simulator", 43: "PATCH /bots is no endpoint of the simulator",
	},
	"errors": {
		22: "the real Tornado does not check the host of requests from 127.0.0.1; that is the laboratory, not Zulip",
		46: "POST /users is no endpoint of the simulator",
		47: "POST /bots is no endpoint of the simulator",
		50: "regenerate is no endpoint of the simulator", 55: "DELETE /bots is no endpoint of the simulator",
	},
	"arguments-and-ends": {27: "realm/deactivate is no endpoint of the simulator"},
}

// shapeOnly names exchanges of which status, headers, members and kinds are compared, but
// no values.
var shapeOnly = map[string]map[int]string{
	"arguments-and-ends": {25: "another organization, with its own settings", 30: "another organization"},
}

// notCompared names members whose values may differ; that they are there, in their place
// and of their kind, is compared.
var notCompared = map[string]string{
	"events.message.recipient_id":                       "a number of Zulip's database",
	"messages.recipient_id":                             "the same",
	"message.recipient_id":                              "the same",
	"date_joined":                                       "accounts are made when the test begins",
	"bot_owner_id":                                      "the simulator has no owners of bots",
	"server_generation":                                 "when Tornado was started",
	"events.server_generation":                          "the same",
	"events.subscriptions.color":                        "Zulip draws lots",
	"events.streams.date_created":                       "the moment of its making",
	"events.subscriptions.date_created":                 "the same",
	"events.streams.can_administer_channel_group":       "the creator, as a group",
	"events.subscriptions.can_administer_channel_group": "the same",
	"onboarding_steps":                                  "ten hints for new users; the simulator has two",
	"presences":                                         "the simulator remembers nobody's presence",
	"presence_last_update_id":                           "the same",
	"realm_user_groups":                                 "the simulator has two of ten system groups",
	"realm_can_create_groups":                           "a group of people",
	"server_supported_permission_settings":              "9 kB about settings, left out",
	"realm_emoji":                                       "pictures",
	"cross_realm_bots":                                  "the simulator has two of three system bots",
	"realm_embedded_bots":                               "the simulator lists two of six",
	"realm_incoming_webhook_bots":                       "the simulator lists two of 88",
	"stop_words":                                        "the simulator has two of them",
	"available_notification_sounds":                     "the same",
	"subscriptions":                                     "other channels, with more settings",
	"never_subscribed":                                  "other channels",
	"streams":                                           "other channels",
	"realm_default_streams":                             "the simulator has none",
	"realm_default_stream_groups":                       "the same",
	"starred_messages":                                  "of other scenarios",
	"unread_msgs":                                       "the simulator counts nothing unread",
	"recent_private_conversations":                      "the simulator lists none",
	"realm_users":                                       "other people",
	"realm_non_active_users":                            "the same",
}

var scenarios = []scenario{
	{file: "protocol", epoch: 1795571633.875, least: 136, sweep: 71 * time.Second, setup: func(r *replay) {
		// A register of bot beside two writers, of which only a remark is kept.
		r.cause(10.940, func() {
			r.mu.Lock()
			r.linger[r.keys["bot"].Email] = 6600 * time.Microsecond
			r.mu.Unlock()
			x := &exchange{Who: "bot", Method: "POST", Path: "/api/v1/register", Params: map[string]string{
				"event_types": `["message"]`, "fetch_event_types": `["message"]`}}
			rec := httptest.NewRecorder()
			r.s.ServeHTTP(rec, r.request(x))
			var a struct {
				Queue string `json:"queue_id"`
				Last  int    `json:"last_event_id"`
				Max   int    `json:"max_message_id"`
			}
			json.Unmarshal(rec.Body.Bytes(), &a)
			if a.Last != 0 || a.Max != 216 {
				r.t.Errorf("register beside two writers: last_event_id %d, max_message_id %d, Zulip 0 and 216",
					a.Last, a.Max)
			}
			r.mu.Lock()
			r.queues["89477cbe-2c74-411f-aa35-a7bd328471f1"] = a.Queue
			r.mu.Unlock()
		})
		// A poll whose client went away after 0.7 s.
		r.cause(3.509, func() {
			ctx, cancel := context.WithTimeout(r.t.Context(), 700*time.Millisecond)
			defer cancel()
			x := &exchange{Who: "bot", Method: "GET", Path: "/api/v1/events", Params: map[string]string{
				"queue_id": "aa7e76a4-85ca-4ec2-b4c7-99043ee0645d", "last_event_id": "3"}}
			r.mu.Lock()
			r.beat = 55 * time.Second
			r.mu.Unlock()
			r.s.ServeHTTP(httptest.NewRecorder(), r.request(x).WithContext(ctx))
		})
	}},
	{file: "corner-cases", epoch: 1795572166.1, least: 54, notices: []int64{278, 279},
		before: map[int64]float64{263: 0.150, 270: 0.70}, setup: func(r *replay) {
			r.s.nextChan = 29
			topic := func(name string) {
				var ids []int64
				for _, m := range r.s.Messages() {
					if m.Channel == "lab-corners" && strings.EqualFold(m.Topic, name) {
						ids = append(ids, m.ID)
					}
				}
				r.s.DeleteMessages(ids...)
			}
			r.cause(0.635, func() { topic("MIXED CASE") })
			r.cause(0.745, func() { topic("bulk") })
			watch := r.keys["watchbot"]
			r.cause(1.557, func() { watch.Update(func(a *Account) { a.DefaultChannel, a.AllPublic = "lab-far", true }) })
			r.cause(2.002, func() { watch.Update(func(a *Account) { a.DefaultChannel, a.AllPublic = "", false }) })
		}},
	{file: "errors", epoch: 1795571915.97, least: 52, setup: func(r *replay) {
		mortal := r.keys["mortal"]
		mortal.FullName = "Mortal Bot 1795571916"
		delete(r.s.accounts, mortal.Email)
		mortal.Email = "mortal1795571916-bot@localhost"
		r.s.accounts[mortal.Email] = mortal
		r.cause(1.31, func() { mortal.RegenerateKey() })
		r.cause(3.39, func() { mortal.Update(func(a *Account) { a.Deactivated = true }) })
	}},
	{file: "arguments-and-ends", epoch: 1795572592.91, least: 29, setup: func(r *replay) {
		// Ada wrote in these topics before, so no policy is set for her now.
		for i, topic := range []string{"long", strings.Repeat("t", 57) + "...", "mirror", "u"} {
			r.cause(-1.5, func() {
				r.s.SendMessage(Message{ID: int64(3270 + i), Channel: "lab-corners", Topic: topic, Content: "before"})
			})
		}
		r.cause(2.1, r.root.DeactivateRealm)
	}},
	{file: "rate-limit", epoch: 1795571922.1, least: 29, setup: func(r *replay) {
		r.cause(-1, func() {
			r.s.SendMessage(Message{ID: 251, Channel: "lab-history", Topic: "history moved", Content: "the newest"})
		})
		r.burst(196, 0.040, 0.915, "pacebot", "/api/v1/users/me", "")
		poll := "/api/v1/events?queue_id=75d83df4-d528-47c6-af47-eeae798e3575&last_event_id=-1&dont_block=true"
		r.burst(198, 60.038, 60.450, "pacebot2", poll, "")
		r.burst(4, 61.5, 65.5, "pacebot2", poll, "")
		r.burst(259, 67.590, 67.899, "pacebot", "/api/v1/users/me", "wrong key")
	}},
	{file: "rate-limit-two-rules", epoch: 1795572215.2, least: 62, setup: func(r *replay) {
		rules := []RateRule{{200, time.Minute}, {260, time.Hour}}
		r.s.EventsRules, r.s.APIRules = rules, rules
		poll := "/api/v1/events?queue_id=6b2bafa7-61ca-4ff2-8906-059ff1ec8e93&last_event_id=-1&dont_block=true"
		r.cause(-1, func() {
			r.s.SendMessage(Message{ID: 259, Channel: "lab-restart", Topic: "r",
				Content: "the newest"})
		})
		r.burst(1, 0.055, 0.056, "pacebot", poll, "")
		r.burst(200, 0.064, 0.786, "pacebot", poll, "")
		for _, x := range r.lines[3:60] { // a poll that was good came just before each of these
			r.burst(1, x.T-0.004, x.T, "pacebot", poll, "")
		}
		r.burst(199, 19.22, 21.48, "pacebot2", "/api/v1/users/me", "")
	}},
	{file: "restart", epoch: 1795572048.1, least: 30,
		// The port was open before anybody listened there: these two were answered when
		// Tornado was ready.
		late: map[int]float64{17: 1.615, 31: 1.38},
		setup: func(r *replay) {
			r.cause(-1, func() {
				r.s.SendMessage(Message{ID: 254, Channel: "lab-restart", Topic: "old",
					Content: "before"})
			})
			r.cause(1.538, r.s.Down)
			r.cause(13.77, r.s.Up)
			r.cause(16.636, func() { r.s.Down(); r.s.Crash() })
			r.cause(21.04, r.s.Up)
		}},
	{file: "register", epoch: 1795572164.85, least: 36, setup: func(r *replay) {
		r.cause(-1.1, func() {
			r.s.SendMessage(Message{ID: 176, Channel: "lobby-2", Topic: "hello", Content: "the guest's newest"})
		})
		r.cause(-1, func() {
			r.s.SendMessage(Message{ID: 259, Channel: "lab-register", Topic: "start", Content: "everybody's newest"})
		})
	}},
	{file: "history", epoch: 1795571837.66, least: 34, notices: []int64{251}},
	{file: "history-access", epoch: 1795573353.3, least: 27, setup: func(r *replay) { r.s.nextChan = 35 }},
	{file: "merging-order", epoch: 1795573437.6, least: 8},
	{file: "idle-default", epoch: 1795572170.5, least: 2, sweep: 66 * time.Second},
}

// TestCaptured holds the simulator against a real server.
func TestCaptured(t *testing.T) {
	for _, sc := range scenarios {
		t.Run(sc.file, func(t *testing.T) {
			lines := load(t, sc.file)
			synctest.Test(t, func(t *testing.T) {
				r := &replay{t: t, sc: sc, lines: lines}
				r.run()
				t.Logf("%d exchanges compared, %d not imitated", r.compared, r.skipped)
				if r.compared < sc.least {
					t.Errorf("only %d exchanges were compared, %d are expected", r.compared, sc.least)
				}
			})
		})
	}
}
