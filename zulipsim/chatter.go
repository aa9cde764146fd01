package zulipsim

import (
	"context"
	"math/rand/v2"
	"strings"
	"time"
)

// cast is who chats.
var cast = []struct{ email, name string }{
	{"ada@example.com", "Ada Byron"},
	{"grace@example.com", "Grace Hooper"},
	{"bjork@example.com", "Björk Þórsdóttir"},
	{"jose@example.com", "José Ñandú"},
	{"linh@example.com", "Nguyễn Thùy Linh"},
	{"akira@example.com", "山田 明"},
	{"zoya@example.com", "Зоя Орлова"},
	{"noor@example.com", "نور حداد"},
	{"kofi@example.com", "Kofi 🐢 Mensah"},
}

// scene is a short conversation. A line begins with the part of its speaker, a letter;
// who plays it is drawn anew each time. After a line "~" stands what it is corrected to a
// little later.
type scene struct {
	channel, topic string
	lines          []string
}

var scenes = []scene{
	{"kitchen", "the coffee machine", []string{
		"a: The coffee machine says its certificate has expired.",
		"b: It has a *certificate*?",
		"a: It has three. And an opinion about my login. :coffee:",
		"c: I turned it off and on again. It wants to talk to a manager.",
		"b: I am a manager now. It says the water is \"eventually consistent\".",
	}},
	{"engineering", "Friday deploy", []string{
		"a: It is 16:55. I have a one-line change.",
		"b: No.",
		"a: It is a *comment*.",
		"c: The last one was a comment, too. :fire:",
		"a: Fine. Monday. I shall tell my line that it is loved.",
	}},
	{"engineering", "off by one", []string{
		"a: There are two hard things: naming, and",
		"b: and being interrupted.",
		"a: and off-by-one errors.",
		"c: That is three things.",
		"a: Zero-based, so yes.",
	}},
	{"kitchen", "Björk's sourdough", []string{
		"a: The starter has doubled. Again. It is in the meeting room now.",
		"b: We need a quota. :eyes:",
		"a: It asked for one, politely.",
		"c: I can confirm that it answers to \"Kevin\".",
	}},
	{"ops", "disk space", []string{
		"a: /var is at 97 %.",
		"b: Logs?",
		"a: One log. It says \"disk almost full\", once a milisecond. ~ a: One log. It says \"disk almost full\", " +
			"once a millisecond.",
		"b: So the disk is full of the news that it is full.",
		"c: Journalism. :check:",
	}},
	{"ops", "the pager", []string{
		"a: Who is on call?",
		"b: The cat. It stepped on the rota.",
		"a: And?",
		"b: Best week we ever had. :cat: No escalation, two naps an hour.",
	}},
	{"design", "the shade of blue", []string{
		"a: I made 41 shades. Please vote.",
		"b: They are the same.",
		"a: Number 17 is **slightly more honest**.",
		"c: I like number 42.",
		"a: There is no number 42.",
		"c: That is why it feels so free.",
	}},
	{"general", "lost & found", []string{
		"a: Found: one rubber duck, yellow, slightly condescending.",
		"b: That is mine! It knows why the cache is wrong.",
		"a: It told me, too. It was your fault.",
		"b: :owl: It has never been tactful.",
	}},
	{"general", "weather 🌧", []string{
		"a: Il pleut. Es regnet. 雨です。 It is raining.",
		"b: Is that four bugs or one?",
		"c: One, translated. Works as designed.",
		"a: Then I take the boat. :boat:",
	}},
	{"engineering", "regex help > please?", []string{
		"a: How do I match an e-mail address?",
		"b: You look it deep in the eyes and ask.",
		"c: `.+@.+` and a stamp. Snail mail does the rest. :snail:",
		"a: This is the most robust answer so far.",
	}},
	{"engineering", "flaky test #7", []string{
		"a: It failed.",
		"a: It passed.",
		"a: It did both, I have a screenshot.",
		"b: Schrödinger called. He wants his CI back. :ghost:",
		"c: I fixed it: it waited for 50 ms. Now it waits for the event.",
		"b: You could have told me *before* I built the box.",
	}},
	{"design", "icons", []string{
		"a: What does the floppy disk mean to people under thirty?",
		"b: A vending machine that is out of drinks.",
		"c: A 3D print of the save button.",
		"a: :joy: I keep it.",
	}},
	{"random", "lunch", []string{
		"a: Phở or pizza?",
		"b: 🍜",
		"c: Pizza with phở on it.",
		"b: That is soup with a lid.",
		"a: We have consensus then: nobody is happy, all are fed.",
	}},
	{"random", "haiku.v2 *draft*", []string{
		"a: The queue fills slowly.\nOne event, then another.\nThen: the whole office.",
		"b: :heart: Seventeen syllables, no acknowledgement.",
		"a: At least once delivered.",
	}},
	{"ops", "naming the servers", []string{
		"a: We ran out of Greek gods.",
		"b: Norse? Slavic? Pasta?",
		"c: `penne-01` is down, `penne-02` is overloaded, `farfalle` thinks it is a load balancer.",
		"a: Pasta it is. :tada:",
	}},
	{"general", "a turtle in the stand-up", []string{
		"a: Kofi's turtle has joined the stand-up.",
		"b: What did it do yesterday?",
		"a: It walked from the door to the plant.",
		"c: And today?",
		"a: Back. It is blocked by nothing and nobody. :rocket:",
	}},
	{"random", "überraschung", []string{
		"a: Who put googly eyes on the printer?",
		"b: It looks at me now when it jams.",
		"c: It always did. Now it looks *sorry*. :thinking:",
	}},
	{"engineering", "code review", []string{
		"a: Could you look at my change? 4,812 lines.",
		"b: Looks good to me.",
		"a: And this one? 9 lines.",
		"b: I have eleven remarks, a drawing and a question about your childhood.",
	}},
}

// act is a scene being played.
type act struct {
	scene
	parts map[byte]int // speaker -> member of the cast
	next  int          // line
	typed bool         // the speaker of the next line has begun to type
	ids   []int64      // the messages so far
}

// later is a correction that is still to come.
type later struct {
	in   int // steps
	id   int64
	text string
}

// chat is a chatter at work.
type chat struct {
	s      *Server
	rng    *rand.Rand
	acts   []*act
	order  []int // scenes still to be played in this round
	fixes  []later
	recent []int64 // newest messages
}

// Chatter lets people talk, react, correct themselves and type, about one such thing each
// `every`, until ctx ends. The same seed makes the same people say the same things in the
// same order.
func (s *Server) Chatter(ctx context.Context, seed uint64, every time.Duration) {
	c := &chat{s: s, rng: rand.New(rand.NewPCG(seed, 0x636861747465))}
	for _, p := range cast {
		s.Person(p.email, p.name)
	}
	for ctx.Err() == nil {
		c.step()
		sleep(ctx, time.Duration(float64(every)*(0.4+1.2*c.rng.Float64())))
	}
}

// step does one thing.
func (c *chat) step() {
	for i := range c.fixes {
		c.fixes[i].in--
	}
	if len(c.fixes) > 0 && c.fixes[0].in <= 0 {
		f := c.fixes[0]
		c.fixes = c.fixes[1:]
		c.s.EditMessage(f.id, Edit{Content: &f.text})
		return
	}
	switch n := c.rng.IntN(100); {
	case n < 16 && len(c.recent) > 0:
		emoji := []string{"tada", "+1", "joy", "heart", "octopus", "eyes", "rocket", "thinking", "cat", "cake"}
		id := c.recent[c.rng.IntN(len(c.recent))]
		c.s.React(id, c.someone(), emoji[c.rng.IntN(len(emoji))])
	case n < 19:
		status := []string{"at lunch 🍜", "in a meeting about meetings", "petting the cat", "works from the boat",
			"focus (really)", ""}
		c.s.Emit(map[string]any{"type": "user_status", "user_id": c.s.Account(c.someone()).ID,
			"status_text": status[c.rng.IntN(len(status))]})
	case n < 21 && len(c.recent) > 3:
		oops := []string{"wrong channel, sorry", "ls -la", "hunter2", "Bis später, Schatz! 😘"}
		id := c.send(cast[c.rng.IntN(len(cast))].email, "general", "chat", oops[c.rng.IntN(len(oops))])
		c.recent = c.recent[:len(c.recent)-1] // nobody reacts to it: it is taken back
		c.s.DeleteMessages(id)
	default:
		c.play()
	}
}

func (c *chat) someone() string { return cast[c.rng.IntN(len(cast))].email }

// play goes on with one of the conversations, two or three of which are held at once.
func (c *chat) play() {
	if len(c.acts) < 2 || len(c.acts) < 3 && c.rng.IntN(6) == 0 {
		c.open()
	}
	i := c.rng.IntN(len(c.acts))
	a := c.acts[i]
	line, fix, _ := strings.Cut(a.lines[a.next], " ~ ")
	speaker := cast[a.parts[line[0]]].email
	if !a.typed && c.rng.IntN(3) == 0 {
		a.typed = true
		c.s.Typing(speaker, "start", a.channel, a.topic)
		return
	}
	if a.typed {
		c.s.Typing(speaker, "stop", a.channel, a.topic)
	}
	a.typed = false
	id := c.send(speaker, a.channel, a.topic, line[3:])
	a.ids = append(a.ids, id)
	if fix != "" {
		c.fixes = append(c.fixes, later{2, id, fix[3:]})
	}
	if a.next++; a.next < len(a.lines) {
		return
	}
	c.acts = append(c.acts[:i], c.acts[i+1:]...)
	if c.rng.IntN(4) == 0 { // somebody marks the topic as resolved
		resolved := "✔ " + a.topic
		c.s.EditMessage(a.ids[0], Edit{Topic: &resolved, By: c.someone(), Also: a.ids})
	}
}

// open begins a conversation, none twice before all were held.
func (c *chat) open() {
	if len(c.order) == 0 {
		c.order = c.rng.Perm(len(scenes))
	}
	a := &act{scene: scenes[c.order[0]], parts: make(map[byte]int)}
	c.order = c.order[1:]
	people := c.rng.Perm(len(cast))
	for i, part := range []byte("abc") {
		a.parts[part] = people[i]
	}
	c.acts = append(c.acts, a)
}

func (c *chat) send(from, channel, topic, text string) int64 {
	id := c.s.SendMessage(Message{Channel: channel, Topic: topic, Sender: from, Content: text})
	c.recent = append(c.recent, id)
	if len(c.recent) > 8 {
		c.recent = c.recent[1:]
	}
	return id
}
