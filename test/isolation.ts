import { Probe, type Stack } from './stack';

/** The tests of the isolation of api2. They hold for every composition of the stack. */
export function isolationTests(stack: Stack) {
  test('a container on the public network cannot reach api2, and api2 cannot reach that network', async () => {
    const probe = new Probe(stack);
    const [api] = await stack.containers('api');
    const [api2] = await stack.containers('api2');
    const api2Url = `http://${await probe.address(api2, 'internal')}:8080/respond`;
    const apiUrl = `http://${await probe.address(api, 'public')}:8080/respond`;
    expect(await probe.fromNetwork('public', [api2Url, apiUrl])).toEqual(['unreachable', 404]);
    expect(await probe.fromContainer(api2, [apiUrl, 'http://api2:8080/respond'])).toEqual([
      'unreachable',
      200,
    ]);
  }, 60_000);
}
