import { execFileSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import type { AnnotationQuery, Dashboard, Panel } from '@grafana/schema';
import { parse } from 'yaml';

const FOLDER = 'deploy/observability';
const DASHBOARD = `${FOLDER}/grafana/dashboards/onehop.json`;
const SCENARIOS = 'test/alerts.promtool.yml';
const FILES = ['docker-compose.yml', 'docker-compose.observability.yml'];
const TOOLS = ['prometheus', 'jaeger', 'grafana'];
const PANEL_TYPES: Readonly<Record<string, string>> = {
  timeseries: 'timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen',
  'state-timeline': 'statetimeline/panelcfg/x/StateTimelinePanelCfg_types.gen',
  table: 'table/panelcfg/x/TablePanelCfg_types.gen',
};

const read = (file: string) => readFileSync(file, 'utf8');
const promtool = (...args: string[]) => execFileSync('promtool', args, { encoding: 'utf8' });
const alerts: { alert: string; for: string }[] = parse(read(`${FOLDER}/alerts.yml`)).groups.flatMap(
  ({ rules }: { rules: unknown[] }) => rules,
);
const dashboard: Dashboard = JSON.parse(read(DASHBOARD));
const panels = (dashboard.panels ?? []).filter(({ type }) => type !== 'row') as Panel[];
const compose = JSON.parse(
  execFileSync(
    'docker',
    ['compose', ...FILES.flatMap((file) => ['--file', file]), 'config', '--format', 'json'],
    { encoding: 'utf8' },
  ),
);

describe('Prometheus', () => {
  test('promtool accepts the configuration, the alerts and every scenario of the alerts', () => {
    promtool('check', 'config', `${FOLDER}/prometheus.yml`);
    promtool('check', 'rules', '--lint=all', '--lint-fatal', `${FOLDER}/alerts.yml`);
    expect(promtool('test', 'rules', SCENARIOS)).toContain('SUCCESS');
  });

  test('each alert has a scenario in which it fires and one in which it does not', () => {
    interface Case {
      alertname: string;
      exp_alerts?: unknown[];
    }
    const cases: Case[] = parse(read(SCENARIOS)).tests.flatMap(
      (scenario: { alert_rule_test: Case[] }) => scenario.alert_rule_test,
    );
    const names = alerts.map(({ alert }) => alert).sort();
    const namesOf = (found: Case[]) => [...new Set(found.map(({ alertname }) => alertname))].sort();
    expect(namesOf(cases.filter(({ exp_alerts: expected = [] }) => expected.length > 0))).toEqual(names);
    expect(namesOf(cases.filter(({ exp_alerts: expected = [] }) => expected.length === 0))).toEqual(names);
  });

  test('the jobs are the services, scraped at their admin port', () => {
    const { scrape_configs: jobs } = parse(read(`${FOLDER}/prometheus.yml`));
    expect(jobs).toMatchObject(
      ['api', 'api2'].map((name) => ({ job_name: name, dns_sd_configs: [{ names: [name], port: 9090 }] })),
    );
  });
});

describe('the dashboard', () => {
  test("conforms to Grafana's types, which allow no unknown property", () => {
    expect(typeErrors()).toBe('');
  });

  test('uses only provisioned data sources, by uid', () => {
    const { datasources } = parse(read(`${FOLDER}/grafana/provisioning/datasources/datasources.yml`));
    const provisioned = datasources.map(({ type, uid }: { type: string; uid: string }) => `${type} ${uid}`);
    const used = [...JSON.stringify(dashboard).matchAll(/"datasource":(\{.*?\})/g)].map(([, reference]) => {
      const { type, uid } = JSON.parse(String(reference));
      return `${type} ${uid}`;
    });
    expect(used.length).toBeGreaterThan(panels.length);
    expect([...new Set(used)].sort()).toEqual(provisioned.sort());
  });

  test('has one row for each service, panels that do not overlap, and unique ids', () => {
    const all = dashboard.panels ?? [];
    expect(all.filter(({ type }) => type === 'row').map(({ title }) => title)).toEqual([
      'api',
      'api2',
      'Traces',
    ]);
    expect(new Set(all.map(({ id }) => id)).size).toBe(all.length);
    const cells = all.flatMap(({ gridPos: { x, y, w, h } = { x: 0, y: 0, w: 0, h: 0 } }) =>
      Array.from({ length: w * h }, (_, i) => `${x + (i % w)} ${y + Math.floor(i / w)}`),
    );
    expect(cells.length).toBeGreaterThan(0);
    expect(new Set(cells).size).toBe(cells.length);
  });

  test('leads to the traces of its time range in Jaeger', () => {
    const search = /\/search\?service=api&start=\$\{__from\}000&end=\$\{__to\}000&lookback=custom&limit=20$/;
    const hop = panels.find(({ title }) => title === 'Duration by next hop');
    for (const links of [dashboard.links, hop?.links])
      expect(links).toContainEqual(expect.objectContaining({ url: expect.stringMatching(search) }));
  });

  test('Grafana finds the data sources, the dashboard and the home page where they are mounted', () => {
    const { environment, volumes } = compose.services.grafana;
    const mounted = (path: string) => {
      const volume = volumes.find(({ target }: { target: string }) => path.startsWith(`${target}/`));
      return path.replace(volume?.target, volume?.source);
    };
    const { providers } = parse(read(mounted('/etc/grafana/provisioning/dashboards/dashboards.yml')));
    expect(existsSync(mounted('/etc/grafana/provisioning/datasources/datasources.yml'))).toBe(true);
    expect(mounted(`${providers[0].options.path}/onehop.json`)).toMatch(new RegExp(`${DASHBOARD}$`));
    expect(mounted(environment.GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH)).toMatch(
      new RegExp(`${DASHBOARD}$`),
    );
  });
});

test('the pages explain every panel and every alert', () => {
  for (const { title } of panels) expect(read('docs/observability.md')).toContain(`**${title}**`);
  for (const { alert } of alerts) expect(read('docs/operations.md')).toContain(`| \`${alert}\` |`);
});

describe('the composition', () => {
  test.each(TOOLS)(
    '%s is pinned, unprivileged, limited, and published only on the loopback interface',
    (name) => {
      const service = compose.services[name];
      expect(service.image).toMatch(/:v?\d+\.\d+\.\d+$/);
      expect(service).toMatchObject({
        read_only: true,
        cap_drop: ['ALL'],
        security_opt: ['no-new-privileges:true'],
        user: expect.stringMatching(/^[1-9]\d*:\d+$/),
        pids_limit: expect.any(Number),
      });
      expect(Number(service.mem_limit)).toBeGreaterThan(0);
      expect(Number(service.mem_limit)).toBeLessThanOrEqual(512 * 1024 * 1024);
      expect(service.ports).toHaveLength(1);
      expect(service.ports[0].host_ip).toBe('127.0.0.1');
      for (const { type, target, read_only: isReadOnly } of service.volumes)
        expect(type === 'bind' ? isReadOnly : target).toBe(type === 'bind' ? true : '/prometheus');
    },
  );

  test('only api, Prometheus and Jaeger share a network with api2, which has no way out', () => {
    const networksOf = (name: string) => Object.keys(compose.services[name].networks);
    expect(networksOf('api2')).toEqual(['internal']);
    expect(compose.networks.internal.internal).toBe(true);
    const neighbours = Object.keys(compose.services).filter((name) => networksOf(name).includes('internal'));
    expect(neighbours.sort()).toEqual(['api', 'api2', 'jaeger', 'prometheus']);
    expect(networksOf('grafana')).toEqual(['dashboards']);
  });

  test('both services send their traces to Jaeger', () => {
    const { receivers } = parse(read(`${FOLDER}/jaeger.yml`));
    const port = receivers.otlp.protocols.http.endpoint.split(':')[1];
    for (const name of ['api', 'api2'])
      expect(compose.services[name].environment.OTEL_EXPORTER_OTLP_ENDPOINT).toBe(`http://jaeger:${port}`);
  });
});

/** The errors of TypeScript if the parts of the dashboard are literals of Grafana's types. */
function typeErrors(): string {
  const folder = 'node_modules/.cache/onehop';
  mkdirSync(folder, { recursive: true });
  const { panels: all, annotations, ...rest } = dashboard;
  const lines = [
    "import type { AnnotationQuery, Dashboard, Panel, RowPanel } from '@grafana/schema';",
    // A JSON file has the values of enums.
    `type Plain<T> = T extends string ? \`\${T}\` : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;`,
    `export const dashboard: Plain<Dashboard> = ${JSON.stringify(rest)};`,
    ...(annotations?.list ?? []).map(annotationLine),
    ...(all ?? []).map((panel, i) =>
      panel.type === 'row'
        ? `export const row${i}: Plain<RowPanel> = ${JSON.stringify(panel)};`
        : panelLines(panel as Panel, i),
    ),
  ];
  writeFileSync(`${folder}/dashboard.ts`, lines.join('\n'));
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
    return execFileSync('node_modules/.bin/tsc', ['--ignoreConfig', ...options, `${folder}/dashboard.ts`], {
      encoding: 'utf8',
    });
  } catch (error) {
    return (error as { stdout: string }).stdout;
  }
}

// The data source plugin for Prometheus adds these properties.
type PrometheusAnnotation = AnnotationQuery &
  Record<'step' | 'titleFormat' | 'textFormat' | 'tagKeys', string>;

function annotationLine(annotation: AnnotationQuery, i: number) {
  const { step, titleFormat, textFormat, tagKeys, target, ...rest } = annotation as PrometheusAnnotation;
  for (const text of [step, titleFormat, textFormat, tagKeys]) expect(typeof text).toBe('string');
  expect(Object.keys(target ?? {})).toEqual(['refId', 'expr', 'interval']);
  return `export const annotation${i}: Plain<AnnotationQuery> = ${JSON.stringify(rest)};`;
}

function panelLines(panel: Panel, i: number) {
  const from = `import('@grafana/schema/dist/esm/raw/composable/${PANEL_TYPES[panel.type]}')`;
  return [
    `export const panel${i}: Plain<Panel> = ${JSON.stringify(panel)};`,
    `export const options${i}: Plain<${from}.Options> = ${JSON.stringify(panel.options)};`,
    `export const custom${i}: Partial<Plain<${from}.FieldConfig>> = ${JSON.stringify(panel.fieldConfig?.defaults.custom ?? {})};`,
  ].join('\n');
}
