package harness

import (
	"encoding/json"
	"strconv"

	"zulip-nats/events"
)

// Place says which headers of an event say where it is, by its bytes: read with
// encoding/json, and not as the bridge does.
func Place(raw []byte) map[string]string {
	type where struct {
		Kind    string `json:"type"`
		Channel int64  `json:"stream_id"`
	}
	var e struct {
		Type        string `json:"type"`
		MessageType string `json:"message_type"`
		Channel     int64  `json:"stream_id"`
		Message     where  `json:"message"`
		Recipient   struct {
			Kind    string `json:"type"`
			Channel int64  `json:"channel_id"`
		} `json:"recipient"`
	}
	_ = json.Unmarshal(raw, &e) // what is of another type stays zero
	at := where{e.MessageType, e.Channel}
	if e.Type == "message" {
		at = e.Message
	} else if e.Recipient.Kind != "" {
		at = where(e.Recipient)
	}
	switch {
	case at.Kind == "private" || at.Kind == "direct":
		return map[string]string{events.HeaderRecipientType: "direct"}
	case at.Channel > 0:
		return map[string]string{events.HeaderRecipientType: "channel",
			events.HeaderChannelID: strconv.FormatInt(at.Channel, 10)}
	case at.Kind == "stream" || at.Kind == "channel":
		return map[string]string{events.HeaderRecipientType: "channel"}
	}
	return nil
}
