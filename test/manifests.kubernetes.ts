import { execFileSync } from 'node:child_process';
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { relative } from 'node:path';
import { parse, parseAllDocuments, stringify } from 'yaml';
import type { Env } from '../chassis/settings';
import { readSettings as readApi } from '../services/api/settings';
import { readSettings as readApi2 } from '../services/api2/settings';

interface Manifest {
  apiVersion: string;
  kind: string;
  metadata: { name: string; namespace?: string; labels?: Record<string, string> };
  // biome-ignore lint/suspicious/noExplicitAny: the tests check its contents
  spec: any;
}

const FOLDER = 'deploy/kubernetes';
const CACHE = 'node_modules/.cache/onehop';
/** The packages with the schemas of objects that Kubernetes itself does not define. */
const PACKAGES = new Map<string | undefined, string>([
  ['monitoring.coreos.com', '@kubernetes-models/prometheus-operator'],
  ['gateway.networking.k8s.io', '@kubernetes-models/gateway-api'],
]);
const OVERLAYS = ['local', 'production'] as const;
const SERVICES = ['api', 'api2'] as const;
const READERS = { api: readApi, api2: readApi2 };
const rendered = new Map(OVERLAYS.map((overlay) => [overlay, render(`${FOLDER}/overlays/${overlay}`)]));
const settingsPage = readFileSync('docs/settings.md', 'utf8');
const compose = parse(readFileSync('docker-compose.yml', 'utf8'), { merge: true });

function render(folder: string): Manifest[] {
  const text = execFileSync('kubectl', ['kustomize', folder], { encoding: 'utf8' });
  return parseAllDocuments(text).map((document) => document.toJS());
}

function all(overlay: (typeof OVERLAYS)[number], kind: string): Manifest[] {
  return rendered.get(overlay)?.filter((manifest) => manifest.kind === kind) ?? [];
}

function one(overlay: (typeof OVERLAYS)[number], kind: string, name: string): Manifest {
  const found = all(overlay, kind).filter(({ metadata }) => metadata.name === name);
  expect(found).toHaveLength(1);
  return found[0] as Manifest;
}

function podOf(overlay: (typeof OVERLAYS)[number], service: string) {
  const { template } = one(overlay, 'Deployment', service).spec;
  return { ...template.spec, labels: template.metadata.labels, container: template.spec.containers[0] };
}

function envOf(overlay: (typeof OVERLAYS)[number], service: string): Env {
  const entries = podOf(overlay, service).container.env as { name: string; value?: string }[];
  return Object.fromEntries(entries.map(({ name, value }) => [name, value]));
}

describe.each(OVERLAYS)('the overlay %s', (overlay) => {
  test('every object is valid according to the Kubernetes schemas and has no unknown field', () => {
    expectValid(rendered.get(overlay) as Manifest[]);
  });

  test('every object is in the namespace default and occurs once', () => {
    const manifests = rendered.get(overlay) as Manifest[];
    for (const { metadata } of manifests) expect(metadata.namespace).toBe('default');
    const names = manifests.map(({ kind, metadata }) => `${kind} ${metadata.name}`);
    expect(new Set(names).size).toBe(names.length);
  });

  test('every object has labels for its service and for part-of onehop', () => {
    const unlabelled = (rendered.get(overlay) as Manifest[]).filter(({ metadata: { labels = {} } }) => {
      const hasService = SERVICES.some((service) => labels['app.kubernetes.io/name'] === service);
      return !hasService || labels['app.kubernetes.io/part-of'] !== 'onehop';
    });
    expect(unlabelled.map(({ kind, metadata }) => `${kind} ${metadata.name}`)).toEqual([]);
  });

  test('http://api2.default reaches api2 on port 80, and api resolves every pod through a headless service', () => {
    const service = one(overlay, 'Service', 'api2').spec;
    expect(service.type ?? 'ClusterIP').toBe('ClusterIP');
    expect(service.ports).toContainEqual({ name: 'http', port: 80, targetPort: 'http' });
    const pods = one(overlay, 'Service', 'api2-pods').spec;
    expect(pods.clusterIP).toBe('None');
    const url = new URL(String(envOf(overlay, 'api').API2_URL));
    expect(url.hostname).toBe('api2-pods');
    expect(Number(url.port)).toBe(podOf(overlay, 'api2').container.ports[0].containerPort);
    expect(pods.ports[0].port).toBe(Number(url.port));
    for (const { selector } of [service, pods]) expect(podOf(overlay, 'api2').labels).toMatchObject(selector);
  });

  test('while api2-pods does not resolve, api falls back to a ClusterIP service on the same port', () => {
    const { api2, api2Fallback: fallback } = readApi(envOf(overlay, 'api'));
    const service = one(overlay, 'Service', String(fallback?.host)).spec;
    expect(service.clusterIP).toBeUndefined();
    expect(service.type ?? 'ClusterIP').toBe('ClusterIP');
    const port = Number(new URL(api2.origin).port);
    expect(fallback?.port).toBe(port);
    expect(service.ports).toContainEqual(expect.objectContaining({ port, targetPort: 'http' }));
    expect(service.selector).toEqual(one(overlay, 'Service', 'api2-pods').spec.selector);
  });

  describe.each(SERVICES)('%s', (service) => {
    test('its environment contains only valid and documented settings', () => {
      const env = envOf(overlay, service);
      const filled = { ...env, ...('DATABASE_URL' in env ? { DATABASE_URL: 'postgres://a@b/c' } : {}) };
      const settings = READERS[service](filled);
      // Another test checks that this table lists every variable that the settings read.
      for (const name of Object.keys(env))
        expect(settingsPage).toMatch(new RegExp(`^\\| \`${name}\` \\|.*\\| (${service}|both) \\|`, 'm'));
      expect(settings.port).toBe(podOf(overlay, service).container.ports[0].containerPort);
      expect(settings.adminPort).toBe(podOf(overlay, service).container.ports[1].containerPort);
      expect(env).not.toHaveProperty('FAULTS');
    });

    test('its grace period is longer than drain and shutdown timeout together', () => {
      const { drainMs, shutdownTimeoutMs } = READERS[service]({
        ...envOf(overlay, service),
        DATABASE_URL: undefined,
      });
      // api resolves api2's pods every 2 s, and DNS may cache a response for 30 s.
      expect(drainMs).toBeGreaterThanOrEqual(service === 'api2' ? 32_000 : 2000);
      expect(podOf(overlay, service).terminationGracePeriodSeconds * 1000).toBeGreaterThan(
        drainMs + shutdownTimeoutMs,
      );
      expect(one(overlay, 'Deployment', service).spec.strategy.rollingUpdate).toMatchObject({
        maxUnavailable: 0,
      });
    });

    test('its probes use the admin port', () => {
      const { container } = podOf(overlay, service);
      expect(container.ports).toMatchObject([{ name: 'http' }, { name: 'admin' }]);
      expect(container.readinessProbe.httpGet).toEqual({ path: '/readyz', port: 'admin' });
      expect(container.livenessProbe.httpGet).toEqual({ path: '/livez', port: 'admin' });
      expect(container.startupProbe.httpGet).toEqual({ path: '/livez', port: 'admin' });
    });

    test('it runs with least privilege and with resource limits', () => {
      const pod = podOf(overlay, service);
      expect(pod).toMatchObject({ automountServiceAccountToken: false, enableServiceLinks: false });
      expect(pod.securityContext).toMatchObject({
        runAsNonRoot: true,
        seccompProfile: { type: 'RuntimeDefault' },
      });
      expect(pod.containers).toHaveLength(1);
      expect(pod.container.securityContext).toEqual({
        allowPrivilegeEscalation: false,
        readOnlyRootFilesystem: true,
        capabilities: { drop: ['ALL'] },
      });
      expect(Object.keys(pod.container.resources.requests)).toEqual(['cpu', 'memory']);
      expect(Object.keys(pod.container.resources.limits)).toEqual(['cpu', 'memory']);
      for (const forbidden of ['hostNetwork', 'hostPID', 'hostIPC'])
        expect(pod).not.toHaveProperty(forbidden);
    });

    test('user, memory limit, probes and file permissions agree with the compose file and the Dockerfile', () => {
      const pod = podOf(overlay, service);
      const composed = compose.services[service];
      expect(composed.user).toBe(`${pod.securityContext.runAsUser}:${pod.securityContext.runAsGroup}`);
      expect(composed.mem_limit).toBe('256m');
      expect(pod.container.resources.limits.memory).toBe('256Mi');
      expect(composed.read_only).toBe(true);
      expect(composed.healthcheck.test.join(' ')).toContain(':9090/readyz');
      expect(readFileSync('Dockerfile', 'utf8')).toContain(`--chown=${pod.securityContext.runAsUser}:`);
    });

    test('its pods have the label part-of onehop', () => {
      expect(podOf(overlay, service).labels['app.kubernetes.io/part-of']).toBe('onehop');
    });

    test('its pods are spread over nodes, and at most one is evicted at a time', () => {
      const [spread] = podOf(overlay, service).topologySpreadConstraints;
      expect(spread).toMatchObject({ topologyKey: 'kubernetes.io/hostname' });
      expect(podOf(overlay, service).labels).toMatchObject(spread.labelSelector.matchLabels);
      const budget = one(overlay, 'PodDisruptionBudget', service).spec;
      expect(budget).toMatchObject({
        maxUnavailable: 1,
        selector: { matchLabels: spread.labelSelector.matchLabels },
      });
    });

    test('only the monitoring namespace can reach its admin port', () => {
      const rules = one(overlay, 'NetworkPolicy', service).spec.ingress as {
        from?: unknown;
        ports: { port: string }[];
      }[];
      const admin = rules.filter(({ ports }) => ports.some(({ port }) => port === 'admin'));
      const from = [{ namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'monitoring' } } }];
      expect(admin).toEqual([{ from, ports: [{ port: 'admin' }] }]);
      for (const { ports } of rules) expect(ports.length).toBeGreaterThan(0);
    });
  });

  test("only api's pods can reach api2's service port", () => {
    const { spec } = one(overlay, 'NetworkPolicy', 'api2');
    const http = spec.ingress.filter(({ ports }: { ports: { port: string }[] }) =>
      ports.some(({ port }) => port === 'http'),
    );
    expect(http).toEqual([
      { from: [{ podSelector: { matchLabels: podLabel(overlay, 'api') } }], ports: [{ port: 'http' }] },
    ]);
    expect(podOf(overlay, 'api2').labels).toMatchObject(spec.podSelector.matchLabels);
  });

  test('api2 can connect only to DNS and, in production, the database', () => {
    const { spec } = one(overlay, 'NetworkPolicy', 'api2');
    expect(spec.policyTypes).toContain('Egress');
    const ports = spec.egress.flatMap((rule: { ports: { port: number }[] }) =>
      rule.ports.map(({ port }) => port),
    );
    expect(ports).toEqual(overlay === 'production' ? [53, 53, 5432] : [53, 53]);
    expect(spec.egress[0].to).toEqual([
      { namespaceSelector: { matchLabels: { 'kubernetes.io/metadata.name': 'kube-system' } } },
      { ipBlock: { cidr: '169.254.20.10/32' } },
      { ipBlock: { cidr: '169.254.169.254/32' } },
    ]);
  });
});

function podLabel(overlay: (typeof OVERLAYS)[number], service: string) {
  return { 'app.kubernetes.io/name': podOf(overlay, service).labels['app.kubernetes.io/name'] };
}

test('local: one replica each, SQLite on a volume, locally built images', () => {
  for (const service of SERVICES) {
    expect(one('local', 'Deployment', service).spec.replicas).toBe(1);
    expect(podOf('local', service).container).toMatchObject({
      image: `onehop-${service}:local`,
      imagePullPolicy: 'IfNotPresent',
    });
  }
  const { container, volumes } = podOf('local', 'api2');
  const [mount] = container.volumeMounts;
  expect(envOf('local', 'api2').DATABASE_FILE).toMatch(new RegExp(`^${mount.mountPath}/`));
  expect(volumes).toEqual([
    {
      name: mount.name,
      persistentVolumeClaim: { claimName: one('local', 'PersistentVolumeClaim', 'books').metadata.name },
    },
  ]);
  expect(compose.services.api2.environment.DATABASE_FILE).toBe(envOf('local', 'api2').DATABASE_FILE);
});

test('production: at least two replicas with autoscaling, and a PostgreSQL URL from a secret outside the manifests', () => {
  for (const service of SERVICES) {
    const { spec } = one('production', 'HorizontalPodAutoscaler', service);
    expect(spec).toMatchObject({ minReplicas: 2, scaleTargetRef: { kind: 'Deployment', name: service } });
    expect(one('production', 'Deployment', service).spec).not.toHaveProperty('replicas');
  }
  const { container, volumes } = podOf('production', 'api2');
  expect(container.env).toContainEqual({
    name: 'DATABASE_URL',
    valueFrom: { secretKeyRef: { name: 'books-database', key: 'url' } },
  });
  expect(volumes).toBeUndefined();
  expect(all('production', 'Secret')).toEqual([]);
  expect(all('local', 'Secret')).toEqual([]);
});

describe('the examples of docs/kubernetes.md', () => {
  const examples = [...readFileSync('docs/kubernetes.md', 'utf8').matchAll(/^```yaml\n(.*?)^```$/gms)].map(
    ([, text]) => parse(String(text)),
  );
  const example = (kind: string) => examples.find((object) => object.kind === kind);

  test.each(['Ingress', 'HTTPRoute', 'NetworkPolicy'])('the %s is valid', (kind) => {
    expectValid([example(kind)]);
  });

  test('the Ingress and the HTTPRoute send requests to the service api', () => {
    const { name, namespace } = one('production', 'Service', 'api').metadata;
    const [path] = example('Ingress').spec.rules[0].http.paths;
    expect(path.backend.service).toEqual({ name, port: { name: 'http' } });
    expect(example('HTTPRoute').spec.rules[0].backendRefs).toEqual([{ name, port: 80 }]);
    expect(one('production', 'Service', 'api').spec.ports).toMatchObject([{ name: 'http', port: 80 }]);
    for (const kind of ['Ingress', 'HTTPRoute']) expect(example(kind).metadata.namespace).toBe(namespace);
  });

  test("the overlay changes the namespace of every object, the registry and its secret, and api2's settings", () => {
    const overlay = `${CACHE}/my-overlay`;
    mkdirSync(overlay, { recursive: true });
    const kustomization = example('Kustomization');
    const resources = [relative(overlay, `${FOLDER}/overlays/production`)];
    writeFileSync(`${overlay}/kustomization.yaml`, stringify({ ...kustomization, resources }));
    const manifests = render(overlay);
    expectValid(manifests);
    for (const { metadata } of manifests) expect(metadata.namespace).toBe(kustomization.namespace);
    const deployments = manifests.filter(({ kind }) => kind === 'Deployment');
    expect(deployments).toHaveLength(2);
    for (const { metadata, spec } of deployments) {
      const { imagePullSecrets, containers } = spec.template.spec;
      expect(imagePullSecrets).toEqual([{ name: 'registry' }]);
      expect(containers[0].image).toBe(`registry.example.com/shop/onehop-${metadata.name}:0.1.0`);
    }
    const settings = manifests.find(({ kind }) => kind === 'ConfigMap')?.metadata.name;
    expect(settings).toMatch(/^api2-settings-/);
    const api2 = deployments.find(({ metadata }) => metadata.name === 'api2');
    expect(api2?.spec.template.spec.containers[0].envFrom).toEqual([{ configMapRef: { name: settings } }]);
  });
});

describe('the component monitoring', () => {
  const added = renderWithMonitoring().filter(({ apiVersion }) => apiVersion.startsWith('monitoring.'));
  const specOf = (kind: string) => added.find((manifest) => manifest.kind === kind)?.spec;
  const { scrape_configs: jobs } = parse(readFileSync('deploy/observability/prometheus.yml', 'utf8'));

  test('adds valid objects for the Prometheus operator to an overlay', () => {
    expect(added.map(({ kind }) => kind)).toEqual(['PodMonitor', 'PrometheusRule']);
    expectValid(added);
    for (const { metadata } of added)
      expect(metadata).toMatchObject({
        namespace: 'default',
        labels: { 'app.kubernetes.io/part-of': 'onehop' },
      });
  });

  test('has the alerts of deploy/observability/alerts.yml (otherwise, run npm run generate:alerts)', () => {
    expect(specOf('PrometheusRule')).toEqual(parse(readFileSync('deploy/observability/alerts.yml', 'utf8')));
  });

  test('scrapes the admin ports of the pods of both services, in the jobs of prometheus.yml', () => {
    const { selector, jobLabel, podMetricsEndpoints } = specOf('PodMonitor');
    expect(podMetricsEndpoints).toEqual([{ port: 'admin' }]);
    const scraped = SERVICES.map((service) => {
      const { labels, container } = podOf('local', service);
      expect(labels).toMatchObject(selector.matchLabels);
      const admin = container.ports.find(({ name }: { name: string }) => name === 'admin');
      return { job: labels[jobLabel], port: admin.containerPort };
    });
    interface Job {
      job_name: string;
      dns_sd_configs: { port: number }[];
    }
    expect(scraped).toEqual(
      jobs.map(({ job_name: job, dns_sd_configs: [discovery] }: Job) => ({ job, port: discovery?.port })),
    );
  });
});

/** Renders an overlay that adds the component to the overlay `local`, as the documentation describes. */
function renderWithMonitoring() {
  const overlay = `${CACHE}/overlay`;
  const root = relative(overlay, FOLDER);
  mkdirSync(overlay, { recursive: true });
  writeFileSync(
    `${overlay}/kustomization.yaml`,
    stringify({ resources: [`${root}/overlays/local`], components: [`${root}/components/monitoring`] }),
  );
  return render(overlay);
}

function expectValid(manifests: Manifest[]) {
  const errors = execFileSync('node', ['test/validate-manifests.mjs'], {
    input: JSON.stringify(manifests),
    encoding: 'utf8',
  });
  expect(JSON.parse(errors)).toEqual([]);
  expect(unknownFields(manifests)).toBe('');
}

/** The errors of TypeScript if the objects are literals of the published types, which reject unknown fields. */
function unknownFields(manifests: Manifest[]): string {
  mkdirSync(CACHE, { recursive: true });
  const lines = manifests.map(({ apiVersion, kind, ...rest }, i) => {
    const models = PACKAGES.get(apiVersion.split('/')[0]) ?? 'kubernetes-models';
    const type = `import('${models}/${apiVersion}').I${kind}`;
    return `export const o${i}: ${type} = ${JSON.stringify({ apiVersion, kind, ...rest })};`;
  });
  writeFileSync(`${CACHE}/manifests.ts`, lines.join('\n'));
  const options = [
    '--noEmit',
    '--strict',
    '--skipLibCheck',
    '--module',
    'esnext',
    '--moduleResolution',
    'bundler',
  ];
  try {
    return execFileSync('node_modules/.bin/tsc', ['--ignoreConfig', ...options, `${CACHE}/manifests.ts`], {
      encoding: 'utf8',
    });
  } catch (error) {
    return (error as { stdout: string }).stdout;
  }
}
