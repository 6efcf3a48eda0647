package ca

import "testing"

// FuzzAddChainResponse checks that what the client makes of a log's answer is read again by the SCT parser or refused.
func FuzzAddChainResponse(f *testing.F) {
	f.Add([]byte(`{"sct_version":0,"id":"AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","timestamp":1,"extensions":"","signature":"BAMAAQA="}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		sct, err := parseAddChainResponse(answer)
		if err != nil {
			return
		}
		if len(sct) < 1+32+8+2 || len(sct) > 1+32+8+2+0xffff+maxSCT {
			t.Fatalf("an SCT of %d bytes", len(sct))
		}
	})
}
