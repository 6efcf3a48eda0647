package oci

import "net/http"

// Transport sends single requests as the Registry does: past the guard of addresses, with its CAs and its proxy, but without
// credentials, retries or budgets. It is for those who write.
func (r *Registry) Transport() http.RoundTripper { return guarded{r.client} }

type guarded struct{ client *client }

func (g guarded) RoundTrip(req *http.Request) (*http.Response, error) {
	t, err := g.client.transport(req)
	if err != nil {
		return nil, err
	}
	return t.RoundTrip(req)
}
