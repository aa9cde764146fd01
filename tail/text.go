package tail

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Clean makes text fit for one line of a terminal: blanks of all kinds become one blank,
// what does not print is left out (control characters of both sets, DEL, what turns the
// direction of writing, what is not there to be seen), of marks that stand on another
// character three stay, and what is longer than most characters is cut.
//
// Texts come from other people, and a terminal obeys what it is shown.
func Clean(s string, most int) string {
	var b strings.Builder
	n, blank, marks := 0, false, 0
	for _, r := range s {
		if unicode.IsSpace(r) {
			if blank {
				continue
			}
			blank, marks, r = true, 0, ' '
		} else {
			if !unicode.IsPrint(r) {
				continue
			}
			blank = false
			if marks++; !unicode.Is(unicode.Mn, r) && !unicode.Is(unicode.Me, r) {
				marks = 0
			} else if marks > 3 {
				continue
			}
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

// cut shortens clean text to so many columns of a terminal, with … at its end.
func cut(s string, columns int) string {
	if width(s) <= columns {
		return s
	}
	at, used := 0, 0
	for i, r := range s {
		w := runeWidth(r)
		if used+w > columns-1 {
			break
		}
		used += w
		at = i + utf8.RuneLen(r)
	}
	if columns < 1 {
		return ""
	}
	return s[:at] + "…"
}

// width is how many columns clean text takes.
func width(s string) (n int) {
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// wide are the characters that take two columns: East Asian ones that are wide or
// fullwidth, and emoji that are shown as pictures (Unicode's EastAsianWidth.txt, W and F,
// put together in larger ranges).
var wide = &unicode.RangeTable{
	R16: []unicode.Range16{
		{0x1100, 0x115f, 1}, {0x231a, 0x231b, 1}, {0x23e9, 0x23ec, 1}, {0x23f0, 0x23f3, 3}, {0x25fd, 0x25fe, 1},
		{0x2614, 0x2615, 1}, {0x2648, 0x2653, 1}, {0x267f, 0x267f, 1}, {0x2693, 0x2693, 1}, {0x26a1, 0x26a1, 1},
		{0x26aa, 0x26ab, 1}, {0x26bd, 0x26be, 1}, {0x26c4, 0x26c5, 1}, {0x26ce, 0x26d4, 6}, {0x26ea, 0x26ea, 1},
		{0x26f2, 0x26f3, 1}, {0x26f5, 0x26fa, 5}, {0x26fd, 0x2705, 8}, {0x270a, 0x270b, 1}, {0x2728, 0x2728, 1},
		{0x274c, 0x274e, 2}, {0x2753, 0x2755, 1}, {0x2757, 0x2757, 1}, {0x2795, 0x2797, 1}, {0x27b0, 0x27bf, 15},
		{0x2b1b, 0x2b1c, 1}, {0x2b50, 0x2b55, 5}, {0x2e80, 0x303e, 1}, {0x3041, 0x4dbf, 1}, {0x4e00, 0xa4cf, 1},
		{0xa960, 0xa97c, 1}, {0xac00, 0xd7a3, 1}, {0xf900, 0xfaff, 1}, {0xfe30, 0xfe6f, 1}, {0xff00, 0xff60, 1},
		{0xffe0, 0xffe6, 1},
	},
	R32: []unicode.Range32{
		{0x16fe0, 0x18cff, 1}, {0x1b000, 0x1b2ff, 1}, {0x1f004, 0x1f004, 1}, {0x1f0cf, 0x1f0cf, 1},
		{0x1f18e, 0x1f19a, 1}, {0x1f200, 0x1f320, 1}, {0x1f32d, 0x1f393, 1}, {0x1f3a0, 0x1f3fa, 1},
		{0x1f400, 0x1f64f, 1}, {0x1f680, 0x1f6ff, 1}, {0x1f7e0, 0x1f7eb, 1}, {0x1f90c, 0x1f9ff, 1},
		{0x1fa70, 0x1faff, 1}, {0x20000, 0x3fffd, 1},
	},
}

func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.Is(unicode.Mn, r), unicode.Is(unicode.Me, r):
		return 0
	case unicode.Is(wide, r):
		return 2
	}
	return 1
}
