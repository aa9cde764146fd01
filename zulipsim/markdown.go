package zulipsim

import (
	"cmp"
	"fmt"
	"html"
	"regexp"
	"strings"
)

var (
	boldText = regexp.MustCompile(`\*\*([^*]+)\*\*`)
	codeText = regexp.MustCompile("`([^`]+)`")
	linkText = regexp.MustCompile(`\[([^\]]+)\]\((https?://[^)\s]+)\)`)
	lineEnd  = regexp.MustCompile(`([^>])\n`)
	emojiTag = regexp.MustCompile(`:([a-z0-9_+-]+):`)
)

// render turns source text into HTML: enough of Zulip's Markdown that both kinds of content differ as they do there.
func render(text string) string {
	if text == "" {
		return ""
	}
	if !strings.ContainsAny(text, "*`[:\n&<>\"") {
		return "<p>" + text + "</p>"
	}
	h := strings.ReplaceAll(html.EscapeString(text), "&#39;", "'")
	h = strings.ReplaceAll(h, "&#34;", "&quot;")
	h = boldText.ReplaceAllString(h, "<strong>$1</strong>")
	h = codeText.ReplaceAllString(h, "<code>$1</code>")
	h = linkText.ReplaceAllString(h, `<a href="$2">$1</a>`)
	h = emojiTag.ReplaceAllStringFunc(h, func(tag string) string {
		name := strings.Trim(tag, ":")
		code, known := emojiCodes[name]
		if !known {
			return tag
		}
		return fmt.Sprintf(`<span aria-label="%s" class="emoji emoji-%s" role="img" title="%s">%s</span>`,
			strings.ReplaceAll(name, "_", " "), code, strings.ReplaceAll(name, "_", " "), tag)
	})
	h = strings.ReplaceAll(h, "\n\n", "</p>\n<p>")
	h = lineEnd.ReplaceAllString(h, "$1<br>\n")
	return "<p>" + h + "</p>"
}

// emojiCodes are the emoji that the simulator knows by name.
var emojiCodes = map[string]string{
	"tada": "1f389", "+1": "1f44d", "heart": "2764", "joy": "1f602", "octopus": "1f419", "working_on_it": "1f6e0",
	"fire": "1f525",
	"eyes": "1f440", "coffee": "2615", "rocket": "1f680", "bug": "1f41b", "wave": "1f44b", "thinking": "1f914",
	"snail": "1f40c",
	"cake":  "1f370", "cat": "1f431", "owl": "1f989", "ghost": "1f47b", "boat": "26f5", "check": "2705",
}

// emojiCode is the code of an emoji; one that is not known gets a made-up code.
func emojiCode(name string) string { return cmp.Or(emojiCodes[name], "1f419") }
