package cluster

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Members of the secret.
const (
	current     = "tls.crt" // the certificate that is served, as in any secret of type kubernetes.io/tls
	currentKey  = "tls.key"
	following   = "next.crt" // the one after it, from its making until the API server is sure to trust it
	followKey   = "next.key"
	authorities = "ca.crt" // certificates that the webhook configurations name: of current and following, and of what was served before until it ends
)

const (
	backdate = time.Hour // of certificates, for clocks that go behind
	// settle is how long a new authority stands in the secret before its certificate is served: every replica has put it into
	// the webhook configurations by then, several times, and every API server has read them.
	settle         = 5 * time.Minute
	maxAuthorities = 8
)

// ServingOptions name what a webhook is reached by.
type ServingOptions struct {
	Secret  string // in the program's namespace; made when it is missing
	Service string // in the program's namespace
	// Webhooks is the name of the validating and mutating webhook configurations whose CA bundles are kept. Only webhooks
	// that lead to Service are touched. One kind may be missing.
	Webhooks string
	Life     time.Duration // of a certificate; replaced at two thirds
	Now      func() time.Time
}

// Serving is the webhook's own certificate. Each has an authority of its own, whose key is thrown away: nobody can make another. All
// replicas serve what is in the secret; who replaces it first has done it for all, as the API server takes a changed secret only
// from who has read the one before.
type Serving struct {
	cluster *Cluster
	opts    ServingOptions

	mu       sync.Mutex // guards what follows
	serving  *tls.Certificate
	failure  error // why the last look failed
	trusting bool  // the webhook configurations have our authorities
}

// Serving returns the certificate's keeper, which has nothing to serve before Look has succeeded once.
func (c *Cluster) Serving(o ServingOptions) *Serving {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Serving{cluster: c, opts: o, failure: errors.New("the serving certificate was not looked at yet")}
}

// GetCertificate is for tls.Config.
func (s *Serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving == nil {
		return nil, errors.New("there is no serving certificate yet")
	}
	return s.serving, nil
}

// Expiry is when the certificate that is served ends, zero without one.
func (s *Serving) Expiry() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving == nil {
		return time.Time{}
	}
	return s.serving.Leaf.NotAfter
}

// Ready is nil while there is a certificate that the API server is told to trust.
func (s *Serving) Ready() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving != nil && s.trusting && s.opts.Now().Before(s.serving.Leaf.NotAfter) {
		return nil
	}
	return s.failure
}

// Look reads the secret, replaces what is due, serves what is there and sees to the webhook configurations. It is called
// every few seconds: what another replica or an administrator changed is taken over then.
func (s *Serving) Look(ctx context.Context) error {
	err := s.look(ctx)
	s.mu.Lock()
	s.failure = err
	s.mu.Unlock()
	return err
}

func (s *Serving) look(ctx context.Context) error {
	data, err := s.secret(ctx)
	if err != nil {
		return err
	}
	pair, err := tls.X509KeyPair(data[current], data[currentKey])
	if err != nil {
		return fmt.Errorf("secret %s: its certificate or key cannot be read", s.opts.Secret)
	}
	// The API server has to trust a certificate before it sees it.
	if err := s.trust(ctx, data[authorities]); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.serving == nil || !bytes.Equal(s.serving.Certificate[0], pair.Certificate[0]) {
		s.cluster.logger.Info("serving certificate", "expires", pair.Leaf.NotAfter, "names", pair.Leaf.DNSNames)
	}
	s.serving, s.trusting = &pair, true
	return nil
}

// secret returns the secret's members, after what was due has been replaced.
func (s *Serving) secret(ctx context.Context) (map[string][]byte, error) {
	all := s.cluster.client.Resource(secrets).Namespace(s.cluster.namespace)
	for range 3 { // another replica may be faster
		found, err := call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return all.Get(ctx, s.opts.Secret, metav1.GetOptions{})
		})
		missing := apierrors.IsNotFound(err)
		if err != nil && !missing {
			return nil, fmt.Errorf("secret %s: %w", s.opts.Secret, err)
		}
		data := map[string][]byte{}
		if !missing {
			for _, name := range []string{current, currentKey, following, followKey, authorities} {
				if data[name], err = dataOf(found, name); err != nil {
					return nil, fmt.Errorf("secret %s: %w", s.opts.Secret, err)
				}
			}
		}
		names := []string{s.opts.Service + "." + s.cluster.namespace + ".svc", s.opts.Service + "." + s.cluster.namespace + ".svc.cluster.local"}
		next, err := due(data, names, s.opts.Life, s.opts.Now())
		if err != nil {
			return nil, fmt.Errorf("secret %s: %w", s.opts.Secret, err)
		}
		if next == nil {
			return data, nil
		}
		_, err = call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			if missing {
				return all.Create(ctx, s.written(nil, next), metav1.CreateOptions{})
			}
			// With the resourceVersion that was read: who wrote in between is not overwritten.
			return all.Update(ctx, s.written(found, next), metav1.UpdateOptions{})
		})
		switch {
		case err == nil:
			s.cluster.logger.Info("serving certificate replaced", "secret", s.opts.Secret, "next", next[following] != nil)
			return next, nil
		case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err):
			return nil, fmt.Errorf("secret %s: %w", s.opts.Secret, err)
		}
	}
	return nil, fmt.Errorf("secret %s changes whenever it is written", s.opts.Secret)
}

// written returns the secret found, or a new one, with other data.
func (s *Serving) written(found *unstructured.Unstructured, data map[string][]byte) *unstructured.Unstructured {
	encoded := map[string]any{}
	for name, value := range data {
		if value != nil {
			encoded[name] = base64.StdEncoding.EncodeToString(value)
		}
	}
	if found == nil {
		found = &unstructured.Unstructured{Object: map[string]any{
			"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
			"metadata": map[string]any{"name": s.opts.Secret, "namespace": s.cluster.namespace},
		}}
	}
	found.Object["data"] = encoded
	return found
}

// due returns what the secret has to hold instead of data, nil where nothing is due. It is a function of its arguments, apart from
// the keys it makes:
//
//	nothing usable, or other names             → a certificate, served at once: there is nothing to lose
//	two thirds of the current one are over     → another beside it, with its authority
//	the other stands there for settle          → it becomes the current one; the authority of the one before stays until it ends
func due(data map[string][]byte, names []string, life time.Duration, now time.Time) (map[string][]byte, error) {
	leaf := usable(data[current], data[currentKey], data[authorities], names, now)
	if leaf == nil {
		cert, key, ca, err := issue(names, life, now)
		if err != nil {
			return nil, err
		}
		return map[string][]byte{current: cert, currentKey: key, authorities: join(ca, data[authorities], now)}, nil
	}
	if next := usable(data[following], data[followKey], data[authorities], names, now); next != nil {
		if now.Sub(next.NotBefore) < backdate+settle {
			return nil, nil
		}
		return map[string][]byte{current: data[following], currentKey: data[followKey], authorities: join(nil, data[authorities], now)}, nil
	}
	if whole := leaf.NotAfter.Sub(leaf.NotBefore); now.Before(leaf.NotBefore.Add(whole * 2 / 3)) {
		return nil, nil
	}
	cert, key, ca, err := issue(names, life, now)
	if err != nil {
		return nil, err
	}
	return map[string][]byte{
		current: data[current], currentKey: data[currentKey], following: cert, followKey: key, authorities: join(ca, data[authorities], now),
	}, nil
}

// usable returns the certificate when it is one for these names that an authority of the bundle has signed, and has its key.
func usable(cert, key, bundle []byte, names []string, now time.Time) *x509.Certificate {
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		return nil
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	for _, name := range names {
		if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name, CurrentTime: now}); err != nil {
			return nil
		}
	}
	return pair.Leaf
}

// issue makes an authority and a certificate of it, and forgets the authority's key. All three are PEM.
func issue(names []string, life time.Duration, now time.Time) (cert, key, ca []byte, err error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	leafKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, nil, err
	}
	serial := func() *big.Int {
		var b [16]byte
		rand.Read(b[:])
		b[0] = b[0]&0x7f | 0x40 // positive, and always of 16 bytes
		return new(big.Int).SetBytes(b[:])
	}
	authority := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: "attestry admission " + now.UTC().Format("20060102150405")},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, authority, authority, caKey.Public(), caKey)
	if err != nil {
		return nil, nil, nil, err
	}
	if authority, err = x509.ParseCertificate(caDER); err != nil {
		return nil, nil, nil, err
	}
	leaf := &x509.Certificate{
		SerialNumber: serial(), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: now.Add(-backdate), NotAfter: now.Add(life),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, authority, leafKey.Public(), caKey)
	if err != nil {
		return nil, nil, nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(leafKey)
	if err != nil {
		return nil, nil, nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leafDER}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER}), nil
}

// join puts an authority before those of a bundle that have not ended, the newest that there is room for.
func join(ca, bundle []byte, now time.Time) []byte {
	all := slices.Clone(ca)
	kept := 0
	for {
		var block *pem.Block
		if block, bundle = pem.Decode(bundle); block == nil || kept == maxAuthorities {
			return all
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil || now.After(cert.NotAfter) {
			continue
		}
		kept++
		all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
}

// trust writes the authorities into the webhook configurations that do not have them.
func (s *Serving) trust(ctx context.Context, bundle []byte) error {
	found := 0
	for _, resource := range []schema.GroupVersionResource{validating, mutating} {
		configurations := s.cluster.client.Resource(resource)
		config, err := call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return configurations.Get(ctx, s.opts.Webhooks, metav1.GetOptions{})
		})
		if apierrors.IsNotFound(err) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s %s: %w", resource.Resource, s.opts.Webhooks, err)
		}
		ours, changed, err := s.bundled(config, base64.StdEncoding.EncodeToString(bundle))
		if err != nil {
			return fmt.Errorf("%s %s: %w", resource.Resource, s.opts.Webhooks, err)
		}
		found += ours
		if !changed {
			continue
		}
		_, err = call(ctx, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return configurations.Update(ctx, config, metav1.UpdateOptions{}) // with the resourceVersion that was read
		})
		switch {
		case apierrors.IsConflict(err): // the next look sees what the other wrote
			return fmt.Errorf("%s %s was changed by another", resource.Resource, s.opts.Webhooks)
		case err != nil:
			return fmt.Errorf("%s %s: %w", resource.Resource, s.opts.Webhooks, err)
		}
		s.cluster.logger.Info("CA bundle written", "resource", resource.Resource, "name", s.opts.Webhooks)
	}
	if found == 0 {
		return fmt.Errorf("no webhook configuration %s leads to the service %s/%s", s.opts.Webhooks, s.cluster.namespace, s.opts.Service)
	}
	return nil
}

// bundled puts the bundle (base64 of PEM) into the webhooks that lead to our service, and counts these.
func (s *Serving) bundled(config *unstructured.Unstructured, bundle string) (ours int, changed bool, err error) {
	hooks, _, err := unstructured.NestedSlice(config.Object, "webhooks")
	if err != nil {
		return 0, false, err
	}
	for _, hook := range hooks {
		h, ok := hook.(map[string]any)
		if !ok {
			continue
		}
		name, _, _ := unstructured.NestedString(h, "clientConfig", "service", "name")
		namespace, _, _ := unstructured.NestedString(h, "clientConfig", "service", "namespace")
		if name != s.opts.Service || namespace != s.cluster.namespace {
			continue
		}
		ours++
		if has, _, _ := unstructured.NestedString(h, "clientConfig", "caBundle"); has == bundle {
			continue
		}
		changed = true
		if err := unstructured.SetNestedField(h, bundle, "clientConfig", "caBundle"); err != nil {
			return 0, false, err
		}
	}
	if !changed {
		return ours, false, nil
	}
	return ours, true, unstructured.SetNestedSlice(config.Object, hooks, "webhooks")
}
